"""Whose naming a checkpoint has, and its tensors under the catalog's own names. Pure NumPy; the rules are data: `naming.toml`.

A scheme is a list of ordered substitutions that every key runs through, plus what a rewriting of names cannot say: which arrays
are transposed (Paddle's linear layers store [in, out]), which are left out and why, and, for RepViT, how one row of numbered
blocks divides into stages. Two keys that end under one name are an error, so that each tensor has one place.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from repzoo.errors import InputError
from repzoo.plugins import unknown
from repzoo.settings import at_least, setting, validate
from repzoo.zoo.containers import Contents, Table

EMA_TABLES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_ema.module")
TABLES = ("", "state_dict", "model", "model_state_dict", "net", "network", "params")
PREFIXES = ("module.", "model.", "_orig_mod.")
COUNTER = "num_batches_tracked"
# The name of a tensor that only a deploy form has, by family.
DEPLOY_MARKS = {
    "repvgg": re.compile(r"\.reparam_conv\.weight$"),
    "repghost": re.compile(r"\.cheap_operation\.weight$"),
    "repvit": re.compile(r"^stem\.conv1\.weight$"),
}
# The last layers, whose first axis is the classes.
HEADS = {
    "repvgg": ("head.fc",),
    "repghost": ("classifier",),
    "repvit": ("head.head.l", "head.head_dist.l", "head"),
    "fasternet": ("classifier",),
}


@dataclass(frozen=True)
class CheckpointOptions:
    """How a checkpoint is read."""

    source: str = setting(
        "auto",
        help="Naming of the checkpoint's tensors: auto, official, timm, thu, mmpretrain, paddle.",
    )
    num_classes: int | None = setting(
        None, help="Number of classes.  [default: the checkpoint's]", range=at_least(1)
    )
    reset_head: bool = setting(
        False, help="Reinitialize the classifier where its number of classes differs."
    )
    ema: bool = setting(True, help="Load the averaged (EMA) weights where the source prefers them.")
    seed: int = setting(0, help="Seed of every random choice.", range=at_least(0))

    def __post_init__(self) -> None:
        """Refuse values outside the accepted ranges."""
        validate(self)


@dataclass(frozen=True)
class Rule:
    """A substitution: `pattern` anywhere in the key becomes `replacement`, whose {} is group 1, as a number plus `add` if given."""

    pattern: re.Pattern[str]
    replacement: str
    add: int | None = None

    def __call__(self, key: str) -> str:
        """`key` with the substitution made."""
        return self.pattern.sub(self._replaced, key)

    def _replaced(self, match: re.Match[str]) -> str:
        group = match[1] if match.re.groups else ""
        return self.replacement.replace(
            "{}", group if self.add is None else str(int(group) + self.add)
        )


@dataclass(frozen=True)
class NamingScheme:
    """How `source` names the tensors of `family`; see naming.toml."""

    source: str
    family: str
    title: str
    marks: tuple[re.Pattern[str], ...]
    aliases: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    transpose: tuple[re.Pattern[str], ...] = ()
    drop: tuple[tuple[re.Pattern[str], str], ...] = ()
    blocks: tuple[re.Pattern[str], re.Pattern[str]] | None = None
    ema_first: bool = False

    def recognizes(self, keys: Iterable[str]) -> bool:
        """Whether each mark is found among `keys`."""
        known = list(keys)
        return all(any(mark.search(key) for key in known) for mark in self.marks)


@dataclass(frozen=True)
class RenamedWeights:
    """A table under the catalog's names.

    table    name -> array; as stored, but for the transposed
    origin   name -> the key that the file gives it
    form     "train" or "deploy"
    where    which table of the file it was: "" for the file itself
    remarks  what was left out or done, a sentence each
    """

    table: Table
    origin: Mapping[str, str]
    scheme: NamingScheme
    form: str
    where: str
    remarks: tuple[str, ...]

    @property
    def classes(self) -> int | None:
        """Outputs of its last layer, None when it has none."""
        heads = (f"{head}.weight" for head in HEADS[self.scheme.family])
        return next(
            (
                self.table[head].shape[0]
                for head in heads
                if head in self.table and self.table[head].ndim == 2
            ),
            None,
        )

    @property
    def two_heads(self) -> bool:
        """Whether it is a RepViT distilled with a second head."""
        return "head.head_dist.l.weight" in self.table


@cache
def schemes() -> tuple[NamingScheme, ...]:
    """Every scheme of naming.toml, in its order."""
    document = tomllib.loads(
        files("repzoo.zoo").joinpath("naming.toml").read_text(encoding="utf-8")
    )
    return tuple(_scheme(entry) for entry in document["scheme"])


def sources() -> tuple[str, ...]:
    """The names that `source` may have."""
    return tuple(
        dict.fromkeys(name for scheme in schemes() for name in (scheme.source, *scheme.aliases))
    )


def to_catalog_names(
    contents: Contents, family: str, source: str = "auto", ema: bool = True
) -> RenamedWeights:
    """The weights in `contents` under the catalog's names.

    family  whose model is wanted: looked for first; the answer may be another's, see `Scheme.family`
    source  one of `sources()`, or "auto": told from the keys
    ema     take the averaged weights where the source itself prefers them (timm, RepGhost)

    Raises:
        InputError: unknown source, keys that it does not use, or two keys for one name.
    """
    stripped = {where: _stripped(table) for where, table in contents.tables.items()}
    scheme, candidates = _recognized(stripped, family, source)
    where = _chosen(list(candidates), scheme, ema)
    remarks = (
        [] if len(candidates) == 1 else [f"of {_listed(candidates)} the table {where!r} was taken"]
    )
    keys = _numbered(candidates[where], scheme)
    table, origin, dropped = _renamed(keys, scheme)
    remarks += [f"{count} tensors left out: {why}" for why, count in dropped.items()]
    mark = DEPLOY_MARKS.get(scheme.family)
    form = "deploy" if mark and any(mark.search(name) for name in table) else "train"
    return RenamedWeights(table, origin, scheme, form, where, tuple(remarks))


def _scheme(entry: Mapping[str, Any]) -> NamingScheme:
    blocks = entry.get("blocks")
    return NamingScheme(
        entry["source"],
        entry["family"],
        entry["title"],
        tuple(map(re.compile, entry["marks"])),
        tuple(entry.get("aliases", ())),
        tuple(Rule(re.compile(rule[0]), rule[1], *rule[2:]) for rule in entry.get("rules", ())),
        tuple(map(re.compile, entry.get("transpose", ()))),
        tuple((re.compile(item["keys"]), item["why"]) for item in entry.get("drop", ())),
        (re.compile(blocks["index"]), re.compile(blocks["downsample"])) if blocks else None,
        entry.get("ema_first", False),
    )


def _stripped(table: Table) -> Table:
    """Without the prefixes that data parallel, Lightning and torch.compile put before every key."""
    while prefix := next(
        (one for one in PREFIXES if table and all(key.startswith(one) for key in table)), ""
    ):
        table = {key.removeprefix(prefix): value for key, value in table.items()}
    return table


def _recognized(
    tables: Mapping[str, Table], family: str, source: str
) -> tuple[NamingScheme, dict[str, Table]]:
    """The first scheme whose marks the keys bear, one of `family` before others, and the tables that bear them."""
    if source != "auto" and source not in sources():
        raise InputError(unknown("source", source, ["auto", *sources()]))
    allowed = [one for one in schemes() if source == "auto" or source in (one.source, *one.aliases)]
    for scheme in sorted(allowed, key=lambda one: one.family != family):
        if found := {where: table for where, table in tables.items() if scheme.recognizes(table)}:
            return scheme, found
    keys = [key for table in tables.values() for key in table]
    said = "by any known source" if source == "auto" else f"by the source {source}"
    raise InputError(
        f"the checkpoint's {len(keys)} tensors ({', '.join(repr(key[:60]) for key in keys[:3])}, ...) are not named as those of a "
        f"model of the zoo {said}; check the file and --source"
    )


def _chosen(places: list[str], scheme: NamingScheme, ema: bool) -> str:
    def rank(where: str) -> tuple[int, int]:
        averaged = where in EMA_TABLES
        order = EMA_TABLES if averaged else TABLES
        return int(averaged != (ema and scheme.ema_first)), order.index(
            where
        ) if where in order else len(order)

    return min(places, key=rank)


def _listed(places: Iterable[str]) -> str:
    return ", ".join(repr(place) for place in places)


def _numbered(table: Table, scheme: NamingScheme) -> dict[str, tuple[str, Any]]:
    """The key that the rules see -> (the file's key, array). RepViT: block i of one row becomes its place in a stage.

    A stage begins with a block that halves the resolution; timm keeps the last block before it as that block's `pre_block`.
    """
    if scheme.blocks is None:
        return {key: (key, value) for key, value in table.items()}
    index, downsample = scheme.blocks
    numbers = sorted({int(match[1]) for key in table if (match := index.match(key))} - {0})
    halving = {int(match[1]) for key in table if (match := downsample.match(key))}
    places: dict[int, str] = {}
    stage, block = 0, 0
    for number in numbers:
        if number in halving:
            stage, block = stage + 1, 0
            places[number] = f"stages.{stage}.downsample"
        elif number + 1 in halving:
            places[number] = f"stages.{stage + 1}.downsample.pre_block"
        else:
            places[number] = f"stages.{stage}.blocks.{block}"
            block += 1
    found = {}
    for key, value in table.items():
        match = index.match(key)
        inner = (
            f"{places[int(match[1])]}.{key[match.end() :]}"
            if match and int(match[1]) in places
            else key
        )
        found[inner] = (key, value)
    return found


def _renamed(
    keys: Mapping[str, tuple[str, Any]], scheme: NamingScheme
) -> tuple[Table, dict[str, str], dict[str, int]]:
    table: Table = {}
    origin: dict[str, str] = {}
    dropped: dict[str, int] = {}
    for inner, (key, value) in keys.items():
        if why := next((why for pattern, why in scheme.drop if pattern.search(key)), None):
            dropped[why] = dropped.get(why, 0) + 1
            continue
        name = inner
        for rule in scheme.rules:
            name = rule(name)
        if name in table:
            raise InputError(
                f"the checkpoint gives {name} twice, as {origin[name]!r} and as {key!r}; it mixes two models or forms"
            )
        flips = value.ndim == 2 and any(pattern.search(name) for pattern in scheme.transpose)
        table[name], origin[name] = np.transpose(value) if flips else value, key
    return table, origin, dropped
