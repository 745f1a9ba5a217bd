"""Placement searches that are kept, so that the same graph is not searched twice.

What runs fastest depends on the graph, the scheme, the engine, the threads and the kind of host,
and not on the values of weights. So a model that is trained once more, or judged on other images,
needs no new search. Each search has a file in the folder `placements` of the cache
(storage.cache_folder). Deleting one costs another search and nothing else.

A file is no proof: its nodes must be in the graph, and its placements are timed again.

A search that goes further begins with what is kept of the same graph, and with what was fastest in
other widths and input sizes of the same architecture. It keeps each faster placement as soon as it
has it, so that a search that was interrupted is not lost.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.graph.tools.skeleton import sha256_of_structure, sha256_of_wiring
from repzoo.measure import latency
from repzoo.measure.host import host
from repzoo.measure.record import UnexpectedJson, read_result, to_json
from repzoo.quant.network.placement import Placement, PlacementSpace
from repzoo.quant.search.evaluator import Evaluator
from repzoo.quant.search.placement_search import SearchResult
from repzoo.remark import Remark
from repzoo.storage import cache_folder, json_text, read_bounded, write_atomically

FORMAT = 4  # to be raised when the search, or the form of Q/DQ pairs, changes
MAX_BYTES = 2**22
MAX_NAME = 1000  # characters of a placement's name
# A search begins with the best of so many related ones, at most: the latest.
RELATIVES = 2
# Facts of a host that decide which placement is fastest on it.
HOST_FACTS = ("cpu", "machine", "int8", "affinity", "threads")
# Of the circumstances, those that related searches need not share.
OWN_CIRCUMSTANCES = ("graph", "inputs")


@dataclass(frozen=True)
class KeptPlacement:
    """The nodes that run in INT8, by their first outputs, sorted."""

    name: str
    nodes: tuple[str, ...]

    @staticmethod
    def of(placement: Placement) -> KeptPlacement:
        """What is kept of `placement`; the tensors follow from the nodes."""
        return KeptPlacement(placement.name, tuple(sorted(placement.nodes)))

    def placement(self, space: PlacementSpace) -> Placement:
        """The same in the graph of `space`.

        Raises:
            UnexpectedJson: there is no such node, or no layer among them.
        """
        layers = {node.output[0] for node in space.layers}
        others = {node.output[0] for node in space.around}
        unknown = set(self.nodes) - layers - others
        if unknown:
            raise UnexpectedJson(f"the graph has no node {min(unknown)!r} for INT8")
        if not layers & set(self.nodes):
            raise UnexpectedJson(f"its placement {self.name!r} has no layer in INT8")
        return space.placement(self.name, self.nodes)


@dataclass(frozen=True)
class KeptSearch:
    """What a search found.

    Of what it was found under, `circumstances` says all.

    best             the fastest placement
    nearly_as_fast   see SearchResult
    others           the rest of SearchResult.others
    forms            names of placement_choice.FORMS that were faster
    seconds          that the search was allowed
    is_default       whether nobody asked for these seconds
    finished         whether it ended before, since nothing gained
    interrupted      whether it did not come to its end: `best` is the fastest so far
    """

    best: KeptPlacement
    nearly_as_fast: tuple[KeptPlacement, ...]
    others: tuple[KeptPlacement, ...]
    forms: tuple[str, ...]
    seconds: float
    finished: bool
    is_default: bool = False
    interrupted: bool = False
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    @staticmethod
    def of(
        result: SearchResult,
        forms: tuple[str, ...],
        seconds: float,
        is_default: bool = False,
    ) -> KeptSearch:
        """What is kept of `result`, for which the search was allowed `seconds`."""
        near = [timed.placement for timed in result.nearly_as_fast]
        others = [placement for placement in result.others if placement not in near]
        return KeptSearch(
            KeptPlacement.of(result.best.placement),
            tuple(map(KeptPlacement.of, near)),
            tuple(map(KeptPlacement.of, others)),
            forms,
            seconds,
            result.finished,
            is_default,
        )

    def with_best(self, best: Placement, forms: tuple[str, ...]) -> KeptSearch:
        """The same with a faster placement that a later search found on its way."""
        return replace(self, best=KeptPlacement.of(best), forms=forms)


def circumstances(evaluator: Evaluator) -> dict[str, Any]:
    """All that decides which placement is the fastest. The scheme is as it was asked for."""
    gate = evaluator.gate
    facts = host()
    inputs = latency.inputs_for(gate.artifact)
    arrays = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    builder = evaluator.builder
    return {
        "format": FORMAT,
        "graph": sha256_of_structure(builder.cache.original.model),
        "wiring": sha256_of_wiring(builder.cache.original.model),
        "inputs": [list(array.shape) for array in arrays],
        "scheme": asdict(builder.scheme),
        "engine": [gate.engine.name, gate.engine.version()],
        "load": asdict(gate.load),
        "host": {name: facts[name] for name in HOST_FACTS},
    }


def path_of(key: Mapping[str, Any]) -> Path:
    """The file of the search under these circumstances; related ones begin with the same name."""
    own = hashlib.sha256(_text(key).encode()).hexdigest()
    return cache_folder() / "placements" / f"{_related_name(key)}-{own[:24]}.json"


def _related_name(key: Mapping[str, Any]) -> str:
    """What the files of related searches begin with."""
    digest = hashlib.sha256(_text(_shared(key)).encode()).hexdigest()
    return digest[:24]


def _shared(key: Mapping[str, Any]) -> dict[str, Any]:
    """The circumstances that related searches share."""
    return {name: value for name, value in key.items() if name not in OWN_CIRCUMSTANCES}


def read(
    key: Mapping[str, Any], space: PlacementSpace, forms: Collection[str]
) -> tuple[KeptSearch | None, list[str]]:
    """(what an earlier search found; None where there is none or its file is damaged, remarks).

    forms  those that it may name
    """
    path = path_of(key)
    try:
        if not path.exists():
            return None, []
        kept = _read(path, key)
        placements(kept, space)
        if not set(kept.forms) <= set(forms):
            raise UnexpectedJson(f"it names other forms than {', '.join(forms)}")
    except (InputError, UnexpectedJson, OSError) as error:
        remark = Remark(
            "what an earlier search found is not used: {path}: {why}; a new search replaces it",
            path=path,
            why=error,
        )
        return None, [remark]
    return kept, []


def related(key: Mapping[str, Any], space: PlacementSpace) -> list[Placement]:
    """What was fastest in other widths and input sizes of the architecture, the latest first.

    A file that cannot be used is passed over: its own graph's search names and replaces it.
    """
    own = path_of(key)
    folder = own.parent
    try:
        paths = sorted(folder.glob(f"{_related_name(key)}-*.json"), key=_age)
    except OSError:
        return []
    found: list[Placement] = []
    for path in paths:
        if path == own or len(found) == RELATIVES:
            continue
        with contextlib.suppress(InputError, UnexpectedJson, OSError):
            kept = _read(path, key, _shared)
            found.append(kept.best.placement(space))
    return found


def _age(path: Path) -> float:
    """Seconds, up to a constant, since the file was written."""
    return -path.stat().st_mtime


def placements(kept: KeptSearch, space: PlacementSpace) -> list[Placement]:
    """The best one, those that are nearly as fast, the others, in the graph of `space`.

    Raises:
        UnexpectedJson: see `KeptPlacement.placement`.
    """
    every = (kept.best, *kept.nearly_as_fast, *kept.others)
    return [item.placement(space) for item in every]


def write(key: Mapping[str, Any], kept: KeptSearch) -> list[str]:
    """Keep what a search found. The result is a remark where the cache cannot be written."""
    path = path_of(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _text({"for": key, "search": to_json(kept)}).encode())
    except (InputError, OSError) as error:
        return [
            Remark(
                "the placement is searched again the next time, since what was found cannot be "
                "kept: {why}",
                why=error,
            )
        ]
    return []


def _read(
    path: Path,
    key: Mapping[str, Any],
    compared: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> KeptSearch:
    """The search in a file, which must be for `key`, as far as `compared` looks at both."""
    try:
        document = json.loads(read_bounded(path, MAX_BYTES))
    except (ValueError, RecursionError):
        raise UnexpectedJson("it is not JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("search"), dict):
        raise UnexpectedJson("it is not an object with for and search")
    # A file that was copied under another name says what it is for.
    is_for = document.get("for")
    if not isinstance(is_for, dict) or _text(compared(is_for)) != _text(compared(key)):
        raise UnexpectedJson("it is of another graph, engine or host")
    kept = read_result(KeptSearch, document["search"])
    if not math.isfinite(kept.seconds):
        raise UnexpectedJson("its seconds are no number")
    for item in (kept.best, *kept.nearly_as_fast, *kept.others):
        if len(item.name) > MAX_NAME or not item.name.isprintable():
            raise UnexpectedJson("a placement in it has no name that can be printed")
    return kept


def _text(value: Any) -> str:
    return json_text(value, sort_keys=True)
