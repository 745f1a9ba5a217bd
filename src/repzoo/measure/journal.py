"""What every run said of every image while an evaluation goes on, and the journal that outlives a kill.

Images are taken in chunks whose bounds depend on nothing but the data set. A chunk is computed, written to the journal and
shared out as a whole, so an image always meets the same neighbors in its batch: the results after a kill, or over several
processes, are those of one undisturbed process to the last bit.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from repzoo.data.batches import ReadImage, ReadReport
from repzoo.data.dataset import Dataset, Stamp
from repzoo.errors import InputError
from repzoo.storage import append_lines, make_folder

CHUNK = 8  # images: small enough for the caches and for even shares, large enough for the engines to be at their best
TOP = 5
FORMAT = 1
MAX_LINE_BYTES = 2**20
JOURNAL = "evaluation.jsonl"


@dataclass(frozen=True)
class ImagePrediction:
    """Of one image: why it could not be read, or the mode that it had and the best classes of each run, best first."""

    index: int
    top: tuple[tuple[int, ...], ...] = ()
    mode: str = "RGB"
    why: str = ""
    stamp: Stamp | None = None


def chunk_numbers(images: int) -> range:
    """The chunks of a data set of `images` images."""
    return range(-(-images // CHUNK))


def chunk_range(number: int, images: int) -> range:
    """The indices of the images in chunk `number`."""
    return range(number * CHUNK, min((number + 1) * CHUNK, images))


class PredictionTable:
    """The answers of `runs` runs to `images` images, in arrays of a fixed size: 20 bytes an image and run."""

    def __init__(self, runs: int, images: int) -> None:
        self.top = np.full((runs, images, TOP), -1, np.int32)
        self.known = np.zeros(images, bool)
        self._odd: dict[int, ImagePrediction] = {}  # what is not an ordinary RGB image

    def add(self, answers: Sequence[ImagePrediction]) -> None:
        """Enter what is known of some images."""
        for one in answers:
            self.known[one.index] = True
            for run, best in enumerate(one.top):
                self.top[run, one.index, : len(best)] = best
            if one.why or one.mode != "RGB":
                self._odd[one.index] = one

    def chunks(self) -> set[int]:
        """The chunks of which every image is known."""
        images = len(self.known)
        return {
            number
            for number in chunk_numbers(images)
            if self.known[chunk_range(number, images)].all()
        }

    def read(self) -> npt.NDArray[np.int64]:
        """Indices of the images that could be read."""
        kept = self.known.copy()
        kept[[index for index, one in self._odd.items() if one.why]] = False
        return np.flatnonzero(kept)

    def fill_report(self, report: ReadReport) -> None:
        """Enter into `report`, in order, what was out of the ordinary."""
        for _, one in sorted(self._odd.items()):
            report.note(ReadImage(mode=one.mode, why=one.why))

    def packed(self, numbers: Sequence[int]) -> bytes:
        """The chunks `numbers` as bytes for another process; see `unpack`."""
        images = len(self.known)
        indices = np.array(
            [index for number in numbers for index in chunk_range(number, images)], np.int64
        )
        chosen = set(indices.tolist())
        odd = [
            [one.index, one.mode, one.why] for index, one in self._odd.items() if index in chosen
        ]
        head = json.dumps({"n": len(indices), "odd": odd}).encode()
        return len(head).to_bytes(8) + head + indices.tobytes() + self.top[:, indices].tobytes()

    def unpack(self, data: bytes) -> None:
        """Enter what another process has packed."""
        start = 8 + int.from_bytes(data[:8])
        head = json.loads(data[8:start])
        middle = start + 8 * head["n"]
        indices = np.frombuffer(data[start:middle], np.int64)
        self.top[:, indices] = np.frombuffer(data[middle:], np.int32).reshape(
            len(self.top), head["n"], TOP
        )
        self.known[indices] = True
        self._odd |= {
            index: ImagePrediction(index, (), mode, why) for index, mode, why in head["odd"]
        }


class Journal:
    """A file of lines, a header and one for each image, appended chunk by chunk. Use as a context manager: it is locked.

    Each of several processes writes a file of its own (`path`, `path`.1, ...) and reads all that it can see, so a run may go
    on with another number of processes.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], dataset: Dataset, rank: int = 0
    ) -> None:
        folder = path.is_dir() or not path.suffix
        self._first = path / JOURNAL if folder else path
        self._path = self._first.with_name(f"{self._first.name}.{rank}") if rank else self._first
        self._header = json.loads(json.dumps({"evaluation": FORMAT, "chunk": CHUNK, **header}))
        self._dataset = dataset
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        """Lock the file against a second process that would go on with the same run."""
        make_folder(self._path.parent)
        try:
            self._lock = self._path.open("ab")
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written: {error.strerror}; give another place with --resume"
            ) from None
        with contextlib.suppress(ImportError):  # where there is no fcntl, there is no lock
            import fcntl

            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise InputError(
                    f"another process is going on with {self._path}; wait for its end, or give another file"
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the file; one in which nothing was written is removed."""
        if self._lock:
            if not os.fstat(self._lock.fileno()).st_size:
                self._path.unlink(missing_ok=True)
            self._lock.close()

    def restore(self, sheet: PredictionTable) -> None:
        """Enter into `sheet` what is written, cut off what a kill left unfinished, and begin the file if it is new.

        Raises:
            InputError: another evaluation's journal, a damaged one, or an image that was changed since.
        """
        others = self._first.parent.glob(f"{self._first.name}.*")
        parts = [self._first, *sorted(path for path in others if path.suffix[1:].isdigit())]
        for path in parts:
            if path == self._path or path.exists():
                whole = self._restore_one(path, sheet)
                if path == self._path and whole < path.stat().st_size:
                    self._require_torn(whole)
                    os.truncate(path, whole)
        if self._path.stat().st_size == 0:
            append_lines(self._path, [_dumps(self._header)])

    def _require_torn(self, whole: int) -> None:
        """Refuse to cut a file that no kill of ours has left: without a whole header, it must be the beginning of one."""
        if not whole and not (_dumps(self._header) + "\n").encode().startswith(
            self._path.read_bytes()
        ):
            raise InputError(
                f"{self._path} is not the journal of an evaluation; give another file with --resume"
            )

    def append(self, answers: Sequence[ImagePrediction]) -> None:
        """Write a chunk; on a full disk the file stays as it was."""
        append_lines(self._path, [_dumps(self._line(one)) for one in answers])

    def _restore_one(self, path: Path, sheet: PredictionTable) -> int:
        """Bytes of `path` that hold the header and whole chunks, which are entered into `sheet`."""
        lines = _whole_lines(path)
        first = next(lines, None)
        if first is None:
            return 0
        self._check_header(path, _loads(first[0], path, 1))
        images, whole = len(self._dataset), first[1]
        waiting: list[ImagePrediction] = []
        for number, (text, end) in enumerate(lines, 2):
            waiting.append(self._answer(_loads(text, path, number), path, number))
            expected = chunk_range(waiting[0].index // CHUNK, images)
            if (
                waiting[-1].index != waiting[0].index + len(waiting) - 1
                or waiting[0].index != expected[0]
            ):
                raise InputError(
                    f"{path} line {number} is not the image that was to follow; remove the file and start again"
                )
            if len(waiting) == len(expected):
                if sheet.known[expected].any():
                    raise InputError(
                        f"{path} line {number} repeats an image; remove the file and start again"
                    )
                sheet.add(waiting)
                waiting, whole = [], end
        return whole

    def _check_header(self, path: Path, found: Any) -> None:
        if found == self._header:
            return
        if not isinstance(found, dict) or "evaluation" not in found:
            raise InputError(
                f"{path} is not the journal of an evaluation; give another file with --resume"
            )
        keys = dict.fromkeys([*self._header, *found])
        differs = next(key for key in keys if found.get(key) != self._header.get(key))
        raise InputError(
            f"{path} belongs to another evaluation: its {differs} {_first_difference(found.get(differs), self._header.get(differs))}; "
            "give another file with --resume, or repeat that command"
        )

    def _line(self, one: ImagePrediction) -> dict[str, Any]:
        key, target = self._dataset.keys[one.index], self._dataset.targets[one.index]
        said = (
            {"why": one.why}
            if one.why
            else {"top": one.top} | ({"mode": one.mode} if one.mode != "RGB" else {})
        )
        return {"i": one.index, "key": key, "target": target, **said} | (
            {"stamp": one.stamp} if one.stamp else {}
        )

    def _answer(self, line: Any, path: Path, number: int) -> ImagePrediction:
        runs = len(self._header["runs"])
        try:
            index, top = line["i"], tuple(tuple(best) for best in line.get("top", ()))
            made = ImagePrediction(
                index,
                top,
                str(line.get("mode", "RGB")),
                str(line.get("why", "")),
                _pair(line.get("stamp")),
            )
            right = (
                self._dataset.keys[index] == line["key"]
                and self._dataset.targets[index] == line["target"]
                and index >= 0
            )
            classes = [best for one in top for best in one]
            if (
                not right
                or (len(top) != runs and not made.why)
                or not all(type(best) is int and best >= 0 for best in classes)
            ):
                raise ValueError
            if any(not 1 <= len(one) <= TOP for one in top):
                raise ValueError
        except (TypeError, KeyError, IndexError, ValueError, AttributeError):
            raise InputError(
                f"{path} line {number} is damaged; remove the file and start again"
            ) from None
        now = self._dataset.stamp(line["key"]) if self._dataset.stamp else None
        if made.stamp is not None and now != made.stamp:
            raise InputError(
                f"the image {line['key']} was changed after it was evaluated into {path}; restore it, or start again in another file"
            )
        return made


def _pair(value: Any) -> Stamp | None:
    if value is None:
        return None
    size, time = value
    return int(size), int(time)


def _whole_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """(line, offset of its end) of each line that was written to its end."""
    try:
        with path.open("rb") as file:
            while (text := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                yield text, file.tell()
            if len(text) == MAX_LINE_BYTES:
                raise InputError(
                    f"{path} has a line of more than {MAX_LINE_BYTES:,} bytes, so it is no journal; give another file"
                )
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; give another file with --resume"
        ) from None


def _loads(text: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(
            f"{path} line {number} is damaged; remove the file and start again"
        ) from None


def _first_difference(found: Any, wanted: Any) -> str:
    """The innermost pair of values that differ, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        key = next(key for key in [*wanted, *found] if found.get(key) != wanted.get(key))
        return f"{key} {_first_difference(found.get(key), wanted.get(key))}"
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        place = next(
            place
            for place, (one, other) in enumerate(zip(found, wanted, strict=True))
            if one != other
        )
        return f"{place + 1}: {_first_difference(found[place], wanted[place])}"
    short = [
        text if len(text) <= 40 else text[:37] + "..."
        for text in (json.dumps(found), json.dumps(wanted))
    ]
    return f"was {short[0]}, now {short[1]}"


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
