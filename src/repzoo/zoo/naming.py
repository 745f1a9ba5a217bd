"""Recognize whose naming a checkpoint uses, and rename its tensors to the catalog's names.

Pure NumPy. The rules are data: `naming.toml`. A scheme is an ordered list of substitutions for
every key. It also says which arrays are transposed (Paddle's linear layers store [in, out]),
which are left out and why, and how RepViT's numbered blocks divide into stages. Two keys that
become one name are an error.
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

# Where trainers keep averaged and plain weights. Of several tables in a file the first counts.
EMA_TABLES = (
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_state_dict",
    "model_ema.module",
)
TABLES = ("", "state_dict", "model", "model_state_dict", "net", "network", "params")
# Of data parallel, of Lightning, and of torch.compile.
PREFIXES = ("module.", "model.", "_orig_mod.")
# How deep the model may lie in a table that holds other modules too, such as a loss or a teacher.
MAX_DEPTH = 3
COUNTER = "num_batches_tracked"
# The name of a tensor that only a deploy form has, by family.
DEPLOY_MARKS = {
    "repvgg": re.compile(r"\.reparam_conv\.weight$"),
    "repghost": re.compile(r"\.cheap_operation\.weight$"),
    "repvit": re.compile(r"^stem\.conv1\.weight$"),
}
# The last layers, whose first axis is the classes.
HEAD_MARKS = ("^linear\\.weight$", "^head\\.fc\\.weight$", "^classifier\\.", "^head\\.")
HEADS = {
    "repvgg": ("head.fc",),
    "repghost": ("classifier",),
    # Two heads in training form, averaged into the last one in deploy form.
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
    ema: bool = setting(
        True, help="Load the averaged (EMA) weights where the source prefers them."
    )
    seed: int = setting(0, help="Seed of every random choice.", range=at_least(0))

    def __post_init__(self) -> None:
        """Refuse values outside the accepted ranges."""
        validate(self)


@dataclass(frozen=True)
class Rule:
    """A substitution in keys: `pattern` becomes `replacement`.

    "{}" in the replacement stands for group 1 of the pattern, as a number plus `add` if given.
    """

    pattern: re.Pattern[str]
    replacement: str
    add: int | None = None

    def __call__(self, key: str) -> str:
        """`key` with the substitution made."""
        return self.pattern.sub(self._replaced, key)

    def _replaced(self, match: re.Match[str]) -> str:
        group = match[1] if match.re.groups else ""
        if self.add is not None:
            group = str(int(group) + self.add)
        return self.replacement.replace("{}", group)


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

    def recognizes(self, keys: Iterable[str], headless: bool = False) -> bool:
        """Whether each mark matches one of `keys`; `headless` skips marks of the last layer."""
        known = list(keys)
        marks = [
            mark for mark in self.marks if not (headless and mark.pattern in HEAD_MARKS)
        ]
        return all(any(mark.search(key) for key in known) for mark in marks)


@dataclass(frozen=True)
class RenamedWeights:
    """A table of arrays under the catalog's names.

    table    name -> array as stored, transposed where the scheme says so
    origin   name -> key in the file
    form     "train" or "deploy"
    where    position of the table in the file: "" for the file itself
    remarks  what was chosen or left out, one sentence each
    """

    table: Table
    origin: Mapping[str, str]
    scheme: NamingScheme
    form: str
    where: str
    remarks: tuple[str, ...]

    @property
    def classes(self) -> int | None:
        """Outputs of the last layer; None without one."""
        for head in HEADS[self.scheme.family]:
            weight = self.table.get(f"{head}.weight")
            if weight is not None and weight.ndim == 2:
                return int(weight.shape[0])
        return None

    @property
    def two_heads(self) -> bool:
        """Whether it is a RepViT with a second head for distillation."""
        return "head.head_dist.l.weight" in self.table


@cache
def schemes() -> tuple[NamingScheme, ...]:
    """Every scheme of naming.toml, in its order."""
    document = tomllib.loads(
        files("repzoo.zoo").joinpath("naming.toml").read_text(encoding="utf-8")
    )
    return tuple(_scheme(entry) for entry in document["scheme"])


def sources() -> tuple[str, ...]:
    """The accepted values of `source`, besides "auto"."""
    names: list[str] = []
    for scheme in schemes():
        names += [scheme.source, *scheme.aliases]
    return tuple(dict.fromkeys(names))


def to_catalog_names(
    contents: Contents, family: str, source: str = "auto", ema: bool = True
) -> RenamedWeights:
    """The weights in `contents` under the catalog's names.

    family  family of the wanted model, tried first. The result may be of another family: see
            `NamingScheme.family`
    source  one of `sources()`, or "auto" to recognize it from the keys
    ema     take the averaged weights if the source itself prefers them (timm, RepGhost)

    Raises:
        InputError: unknown source, keys that it does not use, or two keys for one name.
    """
    stripped = {where: _stripped(table) for where, table in contents.tables.items()}
    scheme, candidates = _recognized(stripped, family, source)
    where = _choose_table(list(candidates), scheme, ema)
    remarks = _left_out(stripped, where)
    if len(candidates) > 1:
        names = ", ".join(repr(name) for name in candidates)
        remarks.append(f"of {names} the table {where!r} was taken")
    keys = _numbered(candidates[where], scheme)
    table, origin, dropped = _renamed(keys, scheme)
    remarks += [f"{count} tensors left out: {why}" for why, count in dropped.items()]
    mark = DEPLOY_MARKS.get(scheme.family)
    form = "deploy" if mark and any(mark.search(name) for name in table) else "train"
    return RenamedWeights(table, origin, scheme, form, where, tuple(remarks))


def _scheme(entry: Mapping[str, Any]) -> NamingScheme:
    """A `[[scheme]]` of naming.toml."""
    rules = [
        Rule(re.compile(rule[0]), rule[1], *rule[2:]) for rule in entry.get("rules", ())
    ]
    drop = [(re.compile(item["keys"]), item["why"]) for item in entry.get("drop", ())]
    blocks = None
    if "blocks" in entry:
        table = entry["blocks"]
        blocks = (re.compile(table["index"]), re.compile(table["downsample"]))
    return NamingScheme(
        source=entry["source"],
        family=entry["family"],
        title=entry["title"],
        marks=tuple(map(re.compile, entry["marks"])),
        aliases=tuple(entry.get("aliases", ())),
        rules=tuple(rules),
        transpose=tuple(map(re.compile, entry.get("transpose", ()))),
        drop=tuple(drop),
        blocks=blocks,
        ema_first=entry.get("ema_first", False),
    )


def _stripped(table: Table) -> Table:
    """Remove the prefixes that data parallel, Lightning and torch.compile add to every key."""
    prefix = _common_prefix(table)
    while prefix:
        table = {key.removeprefix(prefix): value for key, value in table.items()}
        prefix = _common_prefix(table)
    return table


def _common_prefix(table: Table) -> str:
    """One of PREFIXES that every key has; "" if there is none."""
    for prefix in PREFIXES:
        if table and all(key.startswith(prefix) for key in table):
            return prefix
    return ""


def _recognized(
    tables: Mapping[str, Table], family: str, source: str
) -> tuple[NamingScheme, dict[str, Table]]:
    """The first scheme that recognizes a table, and the tables that it recognizes.

    Schemes of `family` are tried first. A table that holds other modules beside the model is
    searched for it. Last comes a model of `family` without its last layer.
    """
    if source != "auto" and source not in sources():
        raise InputError(unknown("source", source, ["auto", *sources()]))
    usable = [
        scheme
        for scheme in sorted(schemes(), key=lambda scheme: scheme.family != family)
        if source in ("auto", scheme.source, *scheme.aliases)
    ]
    own = [scheme for scheme in usable if scheme.family == family]
    for candidates, headless in ((usable, False), (own, True)):
        searched = tables
        for _ in range(MAX_DEPTH):
            for scheme in candidates:
                known = {
                    where: table
                    for where, table in searched.items()
                    if scheme.recognizes(table, headless)
                }
                if known:
                    return scheme, known
            searched = _modules(searched)
    keys = [key for table in tables.values() for key in table]
    examples = ", ".join(repr(key[:60]) for key in keys[:3])
    by_whom = "by any known source" if source == "auto" else f"by the source {source}"
    raise InputError(
        f"the checkpoint's {len(keys)} tensors ({examples}, ...) are not named as those of a model "
        f"of the zoo {by_whom}; check the file and --source"
    )


def _modules(tables: Mapping[str, Table]) -> dict[str, Table]:
    """The tables of the modules one level below, by position."""
    modules: dict[str, Table] = {}
    for where, table in tables.items():
        for key, value in table.items():
            module, dot, inner = key.partition(".")
            if dot:
                position = f"{where}.{module}" if where else module
                modules.setdefault(position, {})[inner] = value
    return {where: _stripped(table) for where, table in modules.items()}


def _left_out(tables: Mapping[str, Table], where: str) -> list[str]:
    """A remark on what a table holds beside the model at the position `where` inside it."""
    for outer, table in tables.items():
        if where == outer or not where.startswith(f"{outer}." if outer else ""):
            continue
        module = f"{where.removeprefix(outer).removeprefix('.')}."
        others = [key for key in table if not key.startswith(module)]
        if others:
            plural = "s" if len(others) > 1 else ""
            return [
                f"{len(others)} tensor{plural} beside the model, such as {others[0]!r}, left out"
            ]
    return []


def _choose_table(names: list[str], scheme: NamingScheme, ema: bool) -> str:
    """The averaged weights if wanted and preferred by the source, else the plain ones."""
    prefers_averaged = ema and scheme.ema_first

    def rank(name: str) -> tuple[bool, int]:
        """Least is best: the preferred kind of weights, then the order of the lists."""
        is_averaged = name in EMA_TABLES or _is_averaged_module(name)
        order = EMA_TABLES if is_averaged else TABLES
        position = order.index(name) if name in order else len(order)
        return is_averaged != prefers_averaged, position

    return min(names, key=rank)


def _is_averaged_module(name: str) -> bool:
    """Whether the last part of a position names a moving average, as in "state_dict.ema_model"."""
    _, dot, module = name.rpartition(".")
    return bool(dot) and "ema" in module.split("_")


def _numbered(table: Table, scheme: NamingScheme) -> dict[str, tuple[str, Any]]:
    """The key that the rules see -> (key in the file, array).

    RepViT numbers its blocks in one row; here each becomes its position in a stage.
    """
    if scheme.blocks is None:
        return {key: (key, value) for key, value in table.items()}
    index, downsample = scheme.blocks
    # Block 0 is the stem, whose name the rules change.
    numbers = _matched_numbers(index, table) - {0}
    positions = _stage_positions(sorted(numbers), _matched_numbers(downsample, table))
    numbered: dict[str, tuple[str, Any]] = {}
    for key, value in table.items():
        match = index.match(key)
        inner = key
        if match and int(match[1]) in positions:
            inner = f"{positions[int(match[1])]}.{key[match.end() :]}"
        numbered[inner] = (key, value)
    return numbered


def _matched_numbers(pattern: re.Pattern[str], table: Table) -> set[int]:
    """Group 1 of `pattern` in all keys that it matches."""
    matches = [pattern.match(key) for key in table]
    return {int(match[1]) for match in matches if match}


def _stage_positions(numbers: list[int], downsampling: set[int]) -> dict[int, str]:
    """Block number -> position in timm's naming.

    A stage begins with a block that halves the resolution. timm stores the block before it as
    that block's `pre_block`.
    """
    positions: dict[int, str] = {}
    stage = 0
    block = 0
    for number in numbers:
        if number in downsampling:
            stage += 1
            block = 0
            positions[number] = f"stages.{stage}.downsample"
        elif number + 1 in downsampling:
            positions[number] = f"stages.{stage + 1}.downsample.pre_block"
        else:
            positions[number] = f"stages.{stage}.blocks.{block}"
            block += 1
    return positions


def _renamed(
    keys: Mapping[str, tuple[str, Any]], scheme: NamingScheme
) -> tuple[Table, dict[str, str], dict[str, int]]:
    """(arrays by new name, file's key by new name, number of dropped tensors by reason)."""
    table: Table = {}
    origin: dict[str, str] = {}
    dropped: dict[str, int] = {}
    for inner, (key, value) in keys.items():
        reasons = [why for pattern, why in scheme.drop if pattern.search(key)]
        if reasons:
            dropped[reasons[0]] = dropped.get(reasons[0], 0) + 1
            continue
        name = inner
        for rule in scheme.rules:
            name = rule(name)
        if name in table:
            raise InputError(
                f"the checkpoint gives {name} twice, as {origin[name]!r} and as {key!r}; it mixes "
                "two models or forms"
            )
        is_listed = any(pattern.search(name) for pattern in scheme.transpose)
        table[name] = np.transpose(value) if is_listed and value.ndim == 2 else value
        origin[name] = key
    return table, origin, dropped
