"""The verb `compile_pack`: a pack through its vendor's own tool chain, on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.measure.board_logs import board_records
from repzoo.measure.record import Record
from repzoo.packs import compile as packs
from repzoo.progress import Progress, silent
from repzoo.storage import require_writable_folder
from repzoo.vendors.logs.reading import read_log
from repzoo.verbs.model_files import load_file

MINUTES = 120.0


@dataclass(frozen=True)
class Compilation:
    """What a vendor's tool chain made of a pack.

    folder     of the pack, which now holds the compiled model
    target     of the pack
    version    of the tool chain
    simulated  the vendor's own quantized model, which `repzoo evaluate --engine TARGET` runs
    binary     what the board runs
    records    the compiler's estimate of latency, and the similarity of every node
    remarks    what was left out of the Records, and why
    """

    folder: Path
    target: str
    version: str
    simulated: Path
    binary: Path
    records: tuple[Record[Any], ...]
    remarks: tuple[str, ...] = ()


def compile_pack(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    minutes: float = MINUTES,
    progress: Progress = silent,
) -> Compilation:
    """Run the tool chain of a pack that `pack` wrote, and read what it says.

    output   folder for the pack with the compiled model; None: the same folder
    minutes  after which the tool is ended

    Raises:
        InputError: no pack, a tool chain that is missing or of another version, or one that fails,
            crashes or does not end. The pack then stays as it was; the tool's output is in a file
            beside it, which the message names.
    """
    source = Path(folder)
    place = Path(output) if output is not None else source
    if minutes <= 0:
        raise InputError(f"minutes must be more than 0; got {minutes:g}")
    require_writable_folder(place.absolute().parent)
    compiled = packs.compile_pack(source, place.absolute(), minutes, progress)
    artifact = load_file(compiled.model)
    records: list[Record[Any]] = []
    remarks: list[str] = []
    for path in compiled.logs:
        read, noted = board_records(read_log(path), artifact)
        records += read
        remarks += noted
    return Compilation(
        folder=place,
        target=compiled.target,
        version=compiled.version,
        simulated=place / compiled.products.simulated,
        binary=place / compiled.products.binary,
        records=tuple(records),
        remarks=tuple(remarks),
    )
