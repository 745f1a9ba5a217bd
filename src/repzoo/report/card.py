"""Model cards: Markdown in English and Chinese, and JSON. Every number comes from Records."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

import jinja2

from repzoo.graph.tools.int8_share import percent_of_share
from repzoo.measure.host import describe
from repzoo.measure.record import Record, to_json
from repzoo.measure.results import (
    Setting,
)
from repzoo.printable import code_span, escape_markdown, one_line
from repzoo.report import figures
from repzoo.report.board import BoardFacts
from repzoo.report.card_facts import CardFacts, summary
from repzoo.report.front_matter import front_matter
from repzoo.report.race import race_cells
from repzoo.report.translation import translate
from repzoo.storage import json_text

LANGUAGES = {"en": "card.md", "zh": "card_cn.md"}
SHOWN_LABELS = 100


@dataclass(frozen=True)
class Training:
    """What is known of the images that the model was trained on.

    kind   unknown: its history does not say; named: it names `names`, which are not the images of
           the card; these: the images of the card are among them
    """

    kind: Literal["unknown", "named", "these"] = "unknown"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class CardFile:
    """A file beside the card; `sha256` is that of its bytes."""

    name: str
    sha256: str


@dataclass(frozen=True)
class CardContext:
    """What a card says besides the figures of its Records.

    labels   of the outputs, in order; empty where the model does not say
    command  that made the card; "" where it was not made by a command
    files    beside the card
    board    what is known of the model on a board; None where the card is not for one
    pictures names of the files beside the card to look at, as `page.card_files` makes them
    license  of the model, as Hugging Face's list has it; "" where it is not known
    """

    training: Training = field(default_factory=Training)
    labels: tuple[str, ...] = ()
    command: str = ""
    files: tuple[CardFile, ...] = ()
    board: BoardFacts | None = None
    pictures: tuple[str, ...] = ()
    license: str = ""


def render(
    records: Sequence[Record[Any]],
    remarks: Sequence[str],
    context: CardContext | None = None,
) -> dict[str, str]:
    """The card in each language, and card.json with the same values unrounded, by file name."""
    facts = summary(records)
    context = context or CardContext()
    template = _environment().get_template("card.md.j2")
    rendered = {}
    metadata = front_matter(facts, context.license)
    # One template for all languages: the same figures stand in each.
    for language, file in LANGUAGES.items():
        words = _words()[language]
        body = template.render(
            language=language,
            t=words,
            remarks=[translate(remark, language) for remark in remarks],
            latency_heading=latency_heading,
            host_facts=_host_facts(facts.host, language),
            has_top5=facts.has_top5,
            float_serves=facts.float_serves,
            is_for_board=facts.is_for_board,
            shown_labels=SHOWN_LABELS,
            accuracy_forms=facts.accuracy_forms,
            in_float32=_kept(facts, language),
            race=facts.quantize.race,
            race_reason=_race_reason(facts, language),
            **vars(context),
            **vars(facts),
        )
        rendered[file] = metadata + body
    document = {
        **facts.to_json(),
        **to_json(context),
        "remarks": list(remarks),
    }
    text = json_text(document, ensure_ascii=False, indent=1, sort_keys=True)
    rendered["card.json"] = text + "\n"
    return rendered


def latency_heading(setting: Setting, words: Mapping[str, Any]) -> str:
    """The heading of a latency, by the threads that work at once. `words` of one language."""
    clients, threads = setting.streams, setting.threads
    if clients > 1 and threads > 1:
        return str(words["latency_clients"]).format(clients=clients, threads=threads)
    name = "latency1" if clients == threads == 1 else "latencyn"
    return str(words[name]).format(n=max(clients, threads))


def _kept(facts: CardFacts, language: str) -> list[dict[str, str]]:
    """The operators that stay in float32 in the half-precision model, and why."""
    kept = []
    for item in facts.half.summary.kept if facts.half else ():
        kept.append({**item, "reason": translate(item["reason"], language)})
    return kept


def _race_reason(facts: CardFacts, language: str) -> str:
    """Why the winner of the race won; "" without a race."""
    race = facts.quantize.race
    return translate(race.reason, language) if race else ""


def _host_facts(host: Mapping[str, Any], language: str) -> dict[str, str]:
    """The facts of the host as a person reads them, by topic."""
    described = describe(host)
    return {topic: translate(text, language) for topic, text in described.items()}


@functools.cache
def _words() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("repzoo.report") / "words.toml").read_text("utf-8"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repzoo.report"),
        undefined=jinja2.StrictUndefined,  # a name that is missing is an error, not a gap
        autoescape=False,  # the output is Markdown; `plain` and `code` escape it
        trim_blocks=False,
    )
    environment.filters.update(plain=escape_markdown, code=code_span, line=one_line)
    for function in (
        figures.millions,
        figures.percent,
        percent_of_share,
        figures.points,
        figures.ms,
        figures.pixels,
        figures.rate,
        figures.ratio_of,
        figures.span,
        race_cells,
    ):
        environment.globals[function.__name__] = function
    return environment
