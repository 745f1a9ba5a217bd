"""The predictions of an evaluation under way, and the journal from which a killed one resumes.

Images are taken in chunks whose bounds depend on nothing but the data set. A chunk is computed,
written to the journal and exchanged between processes as a whole, so an image always shares its
batch with the same neighbors: the results after a kill, or of several processes, are those of one
undisturbed process to the last bit.
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
from repzoo.storage import append_lines, json_text, make_folder

# Images: small enough for the caches and for even shares, large enough for the engines to be fast.
CHUNK = 8
TOP = 5  # classes that are kept of each image
FORMAT = 1
LENGTH_BYTES = 8  # that hold the length of the header between processes
MAX_LINE_BYTES = 2**20
JOURNAL = "evaluation.jsonl"
LAST_CLASS = 2**31 - 1  # predictions are kept as int32
MAX_SHOWN = 40  # characters of a value in an error message


@dataclass(frozen=True)
class ImagePrediction:
    """What all runs predicted for one image.

    top    for each run the best classes, best first; empty where the image could not be read
    mode   of the image file, such as "RGB" or "L"
    why    why it could not be read; empty where it could
    stamp  size and time of the file, see `Dataset.stamp`
    """

    index: int
    top: tuple[tuple[int, ...], ...] = ()
    mode: str = "RGB"
    why: str = ""
    stamp: Stamp | None = None


def chunk_numbers(images: int) -> range:
    """The numbers of the chunks of `images` images."""
    return range(-(-images // CHUNK))


def chunk_range(number: int, images: int) -> range:
    """The indices of the images in chunk `number`."""
    return range(number * CHUNK, min((number + 1) * CHUNK, images))


class PredictionTable:
    """The predictions of all runs for all images, in arrays of a fixed size.

    That is 20 bytes for each image and run, whatever the number of classes.

    top    int32 [runs, images, TOP]: best classes, best first; -1 where there is none
    known  bool [images]: whether the image was evaluated
    """

    def __init__(self, runs: int, images: int) -> None:
        self.top = np.full((runs, images, TOP), -1, np.int32)
        self.known = np.zeros(images, bool)
        self._unusual: dict[int, ImagePrediction] = {}  # unreadable, or not RGB

    def add(self, predictions: Sequence[ImagePrediction]) -> None:
        """Enter the predictions for some images."""
        for prediction in predictions:
            index = prediction.index
            self.known[index] = True
            for run, classes in enumerate(prediction.top):
                self.top[run, index, : len(classes)] = classes
            if prediction.why or prediction.mode != "RGB":
                self._unusual[index] = prediction

    def chunks(self) -> set[int]:
        """The chunks of which every image is known."""
        images = len(self.known)
        complete = set()
        for number in chunk_numbers(images):
            if self.known[chunk_range(number, images)].all():
                complete.add(number)
        return complete

    def readable(self) -> npt.NDArray[np.int64]:
        """Indices of the images that are known and could be read."""
        readable = self.known.copy()
        unreadable = [index for index, image in self._unusual.items() if image.why]
        readable[unreadable] = False
        return np.flatnonzero(readable)

    def fill_report(self, report: ReadReport) -> None:
        """Enter into `report`, in the order of the images, what was out of the ordinary."""
        for _, prediction in sorted(self._unusual.items()):
            report.note(ReadImage(mode=prediction.mode, why=prediction.why))

    def pack(self, numbers: Sequence[int]) -> bytes:
        """The chunks `numbers` as bytes for another process; see `unpack`.

        Layout: LENGTH_BYTES with the length of a JSON header, the header, int64 indices [n], and
        int32 classes [runs, n, TOP].
        """
        images = len(self.known)
        index_list: list[int] = []
        for number in numbers:
            index_list.extend(chunk_range(number, images))
        indices = np.array(index_list, np.int64)
        unusual = []
        for index in index_list:
            if index in self._unusual:
                prediction = self._unusual[index]
                unusual.append([index, prediction.mode, prediction.why])
        header = json.dumps({"n": len(indices), "unusual": unusual}).encode()
        arrays = indices.tobytes() + self.top[:, indices].tobytes()
        return len(header).to_bytes(LENGTH_BYTES) + header + arrays

    def unpack(self, data: bytes) -> None:
        """Enter what another process has packed."""
        header_end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES])
        header = json.loads(data[LENGTH_BYTES:header_end])
        n = header["n"]
        body = data[header_end:]
        indices = np.frombuffer(body, np.int64, n)
        classes = np.frombuffer(body, np.int32, offset=indices.nbytes)
        self.top[:, indices] = classes.reshape(len(self.top), n, TOP)
        self.known[indices] = True
        for index, mode, why in header["unusual"]:
            self._unusual[index] = ImagePrediction(index, (), mode, why)


class Journal:
    """A file with a header line and a line for each image, appended chunk by chunk.

    Use it as a context manager: the file is locked. Each of several processes writes a file of its
    own (`path`, `path`.1, ...) and reads all that exist, so an evaluation may resume with another
    number of processes.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], dataset: Dataset, rank: int = 0
    ) -> None:
        is_folder = path.is_dir() or not path.suffix
        self._first = path / JOURNAL if is_folder else path
        self._path = self._first
        if rank:
            self._path = self._first.with_name(f"{self._first.name}.{rank}")
        whole = {"evaluation": FORMAT, "chunk": CHUNK, **header}
        # Through JSON and back, so that it equals what is read from a file (lists, not tuples).
        self._header = json.loads(json.dumps(whole))
        self._dataset = dataset
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        """Lock the file against a second process that would resume the same evaluation."""
        make_folder(self._path.parent)
        try:
            self._lock = self._path.open("ab")
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written: {error.strerror}; "
                "give another place with --resume"
            ) from None
        with contextlib.suppress(
            ImportError
        ):  # where there is no fcntl, there is no lock
            import fcntl

            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise InputError(
                    f"another process is writing {self._path}; wait until it ends, "
                    "or give another file"
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock the file; one in which nothing was written is removed."""
        if self._lock:
            # An evaluation that was refused before its first chunk leaves nothing behind.
            if not os.fstat(self._lock.fileno()).st_size:
                self._path.unlink(missing_ok=True)
            self._lock.close()

    def restore(self, table: PredictionTable) -> None:
        """Enter into `table` what is written, and make the file ready for more.

        An incomplete chunk that a kill left at the end is cut off; a new file gets its header.

        Raises:
            InputError: a journal of another evaluation, a damaged one, or an image that was
                changed since it was evaluated.
        """
        # All files are read, whatever the number of processes is now and was then.
        siblings = self._first.parent.glob(f"{self._first.name}.*")
        others = sorted(path for path in siblings if path.suffix[1:].isdigit())
        for path in [self._first, *others]:
            if path != self._path and not path.exists():
                continue
            whole = self._restore_file(path, table)
            if path == self._path and whole < path.stat().st_size:
                self._require_own_beginning(whole)
                os.truncate(path, whole)
        if self._path.stat().st_size == 0:
            append_lines(self._path, [_dumps(self._header)])

    def _require_own_beginning(self, whole: int) -> None:
        """Refuse to cut a file that no kill of ours can have left.

        A file without a complete header must be the beginning of one.
        """
        header = (_dumps(self._header) + "\n").encode()
        if not whole and not header.startswith(self._path.read_bytes()):
            raise InputError(
                f"{self._path} is not the journal of an evaluation; give another file with --resume"
            )

    def append(self, chunk: Sequence[ImagePrediction]) -> None:
        """Write a chunk; on a full disk the file stays as it was."""
        append_lines(
            self._path, [_dumps(self._line(prediction)) for prediction in chunk]
        )

    def _restore_file(self, path: Path, table: PredictionTable) -> int:
        """Enter the complete chunks of `path` into `table`; the offset of their end."""
        lines = _whole_lines(path)
        first = next(lines, None)
        if first is None:
            return 0
        header, whole = first
        self._check_header(path, _loads(header, path, 1))
        images = len(self._dataset)
        pending: list[ImagePrediction] = []
        for number, (text, end) in enumerate(lines, 2):
            pending.append(self._prediction(_loads(text, path, number), path, number))
            start = pending[0].index
            chunk = chunk_range(start // CHUNK, images)
            if start != chunk[0] or pending[-1].index != start + len(pending) - 1:
                raise InputError(
                    f"{path} line {number} is not the image that should follow; "
                    "remove the file and start again"
                )
            if len(pending) < len(chunk):
                continue  # a chunk counts when it is complete, see the module
            if table.known[chunk].any():
                raise InputError(
                    f"{path} line {number} repeats an image; remove the file and start again"
                )
            table.add(pending)
            pending = []
            whole = end
        return whole

    def _check_header(self, path: Path, header: Any) -> None:
        if header == self._header:
            return
        if not isinstance(header, dict) or "evaluation" not in header:
            raise InputError(
                f"{path} is not the journal of an evaluation; give another file with --resume"
            )
        keys = [*self._header, *header]
        key = next(key for key in keys if header.get(key) != self._header.get(key))
        difference = _first_difference(header.get(key), self._header.get(key))
        raise InputError(
            f"{path} belongs to another evaluation: its {key} {difference}; "
            "give another file with --resume, or repeat that command"
        )

    def _line(self, prediction: ImagePrediction) -> dict[str, Any]:
        index = prediction.index
        line: dict[str, Any] = {
            "i": index,
            "key": self._dataset.keys[index],
            "target": self._dataset.targets[index],
        }
        if prediction.why:
            line["why"] = prediction.why
        else:
            line["top"] = prediction.top
            if prediction.mode != "RGB":
                line["mode"] = prediction.mode
        if prediction.stamp:
            line["stamp"] = prediction.stamp
        return line

    def _prediction(self, line: Any, path: Path, number: int) -> ImagePrediction:
        try:
            prediction = self._parse_line(line)
        # ArithmeticError: an infinite number where a count should be.
        except (
            TypeError,
            KeyError,
            IndexError,
            ValueError,
            AttributeError,
            ArithmeticError,
        ):
            raise InputError(
                f"{path} line {number} is damaged; remove the file and start again"
            ) from None
        stamp = self._dataset.stamp(line["key"]) if self._dataset.stamp else None
        if prediction.stamp not in (None, stamp):
            raise InputError(
                f"the image {line['key']} was changed after it was evaluated into {path}; "
                "restore it, or start again in another file"
            )
        return prediction

    def _parse_line(self, line: Any) -> ImagePrediction:
        """`line` as it was written by `_line`; anything else raises one of several errors."""
        index = line["i"]
        top = tuple(tuple(classes) for classes in line.get("top", ()))
        why = str(line.get("why", ""))
        if index < 0 or self._dataset.keys[index] != line["key"]:
            raise ValueError("another image")
        if self._dataset.targets[index] != line["target"]:
            raise ValueError("another class")
        if not why and len(top) != len(self._header["runs"]):
            raise ValueError("another number of runs")
        for classes in top:
            if not 1 <= len(classes) <= TOP:
                raise ValueError("another number of classes")
            if not all(map(_is_class, classes)):
                raise ValueError("not a class")
        stamp = _stamp(line.get("stamp"))
        return ImagePrediction(index, top, str(line.get("mode", "RGB")), why, stamp)


def _is_class(value: Any) -> bool:
    # Not isinstance: bool is a subclass of int, and true is no class.
    return type(value) is int and 0 <= value <= LAST_CLASS


def _stamp(value: Any) -> Stamp | None:
    if value is None:
        return None
    size, time = value
    return int(size), int(time)


def _whole_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """(line, offset of its end) of each line that ends with a newline."""
    try:
        with path.open("rb") as file:
            while True:
                text = file.readline(MAX_LINE_BYTES)
                if not text.endswith(b"\n"):
                    break
                yield text, file.tell()
            if len(text) == MAX_LINE_BYTES:
                raise InputError(
                    f"{path} has a line of more than {MAX_LINE_BYTES:,} bytes, "
                    "so it is not a journal; give another file"
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


def _first_difference(old: Any, new: Any) -> str:
    """The innermost pair of values that differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *old]:
            if old.get(key) != new.get(key):
                return f"{key} {_first_difference(old.get(key), new.get(key))}"
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = zip(old, new, strict=True)
        for position, (old_item, new_item) in enumerate(pairs, 1):
            if old_item != new_item:
                return f"{position}: {_first_difference(old_item, new_item)}"
    return f"was {_shortened(old)}, now {_shortened(new)}"


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _dumps(value: Any) -> str:
    return json_text(value, ensure_ascii=True, separators=(",", ":"))
