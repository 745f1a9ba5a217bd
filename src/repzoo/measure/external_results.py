"""Results that other tools, such as a board's runtime, wrote for the same images.

Three formats are read:

- A CSV: `path,class` or `path,class,score`, see `external_csv`.
- A text file with a line for each of the best classes of an image, best first, as VastModelZOO's
  classification.py and vamp_npz_decode.py write it:
  `PATH: Relay top-K id: ID, prob: P, class name: NAME`. PATH may contain colons.
- A folder of .npz files, one for each image, with the logits as `output_0`, as vamp writes it with
  --datalist. A file belongs to the image of the same name; or else the i-th file, sorted by name,
  belongs to the i-th line of the datalist.

In the last two, classes are matched by id, never by name: two classes of ImageNet are called
"crane". The id is the index of the model's output.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.data.image_file import SUFFIXES
from repzoo.errors import InputError
from repzoo.measure.class_mapping import SYNSET, class_indices, output_labels
from repzoo.measure.external_csv import FORM, is_csv, output_indices, read_csv
from repzoo.measure.journal import TOP
from repzoo.measure.predictions import Predictions, best_classes, describe_images
from repzoo.progress import Progress, silent, tracked
from repzoo.storage import read_bounded, read_lines, sha256_of

LINE = re.compile(
    r"(?P<image>.+): Relay top-(?P<rank>\d+) id: (?P<id>\d+), "
    r"prob: (?P<prob>[^,]+), class name: (?P<name>.*)"
)
LINE_FORMAT = "PATH: Relay top-K id: ID, prob: P, class name: NAME"
MAX_TEXT_BYTES = 2**28  # 50,000 images take about 40 MB
MAX_ARRAY_BYTES = 2**24  # of one image's logits; 1,000 float32 take 4 kB
MAX_CLASSES = 2**20
IMAGENET_CLASSES = 1000
ARRAY = "output_0.npy"  # the member of an .npz file that holds `output_0`


@dataclass
class _ImageResult:
    """The result for one image: its path as the tool wrote it, and the class ids, best first."""

    image: str
    ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Results:
    """All results of a file or folder.

    class_names  by id; empty where the format has none
    sha256       of the content
    by_name      whether the ids were found by the names of the classes
    """

    images: list[_ImageResult]
    class_names: Mapping[int, str]
    sha256: str
    by_name: bool = False

    def top(self) -> npt.NDArray[np.int64]:
        """The class ids [images, classes], best first: as many as every image has."""
        width = min(len(result.ids) for result in self.images)
        rows = [result.ids[:width] for result in self.images]
        return np.array(rows, np.int64)


def read(
    path: Path,
    dataset: Dataset,
    datalist: Path | None = None,
    model: Artifact | None = None,
    progress: Progress = silent,
) -> tuple[Predictions, list[int]]:
    """The predictions in the order of the data set, and the indices of their images.

    datalist  for a folder of .npz: a text whose i-th line names the image of the i-th file
    model     what was run: it says which class an id is. Without it, the ids are taken for the
              data's classes in order

    Raises:
        InputError: an unknown format, damaged or repeated lines, images that the data set lacks,
            ids beyond the classes, counts that do not match, logits that are not finite.
    """
    if path.is_dir():
        results = _read_arrays(path, datalist, progress)
    elif datalist:
        raise InputError(
            f"{path} is a file; a datalist belongs to a folder of .npz files: leave --datalist out"
        )
    else:
        results = _read_text(path, _output_names(dataset, model))
    indices = _match_images([result.image for result in results.images], dataset, path)
    top = results.top()[np.argsort(indices)]
    images = dataset.subset(sorted(indices))
    mapping: Sequence[int]
    if model:
        mapping = class_indices(dataset, model)
    elif results.by_name:
        mapping = range(len(dataset.classes))
    else:
        mapping = _classes_in_order(dataset, int(top.max()), results.class_names, path)
    predictions = Predictions(
        identity=_identity(path, results),
        labels=model.labels if model else dataset.classes,
        engine={"name": "external", "version": ""},
        data=describe_images(dataset.name, images.keys),
        keys=images.keys,
        targets=np.array(mapping)[list(images.targets)],
        top=top,
    )
    return predictions, sorted(indices)


def _identity(path: Path, results: _Results) -> dict[str, Any]:
    """What identifies results in a Record, with the fields of a model's identity."""
    return {
        "name": path.name,
        "form": "external",
        "sha256": results.sha256,
        "classes": None,
        "preprocess": None,
        "size": None,
    }


def select_images(predictions: Predictions, keys: Sequence[str]) -> Predictions:
    """`predictions` for the images `keys` only; it must have all of them."""
    position = {key: index for index, key in enumerate(predictions.keys)}
    # In the order of `keys`: comparisons go row by row.
    rows = [position[key] for key in keys]
    data = describe_images(
        predictions.data["name"], keys, predictions.data["unreadable"]
    )
    return replace(
        predictions,
        keys=tuple(keys),
        targets=predictions.targets[rows],
        top=predictions.top[rows],
        data=data,
    )


def coverage_remarks(dataset: Dataset, indices: Sequence[int]) -> Iterator[str]:
    """What a person should know when there are results for some of the images only."""
    if len(indices) < len(dataset):
        yield (
            f"evaluated on the {len(indices)} of {len(dataset)} images of {dataset.name} "
            "for which there are results"
        )


# Text files


def _output_names(dataset: Dataset, model: Artifact | None) -> Sequence[str]:
    """Names of the outputs: the model's labels, or the data's classes in order."""
    return (output_labels(dataset, model) if model else ()) or dataset.classes


def _read_text(path: Path, names: Sequence[str]) -> _Results:
    """The results in a text or CSV file; `names` are those of the outputs."""
    lines = read_lines(path, MAX_TEXT_BYTES)
    if lines and not LINE.fullmatch(lines[0].rstrip()) and is_csv(lines[0]):
        return _read_csv(lines, names, path)
    reader = _TextReader(path)
    for number, text in enumerate(lines, 1):
        reader.add(number, text)
    _check_images(reader.images, path)
    return _Results(
        reader.images, reader.class_names, sha256_of("\n".join(lines).encode())
    )


def _read_csv(lines: Sequence[str], names: Sequence[str], path: Path) -> _Results:
    table = read_csv(lines, path)
    ids, by_name = output_indices(table, names, path)
    images = []
    for image, classes in table.images.items():
        images.append(_ImageResult(image, [ids[label] for label in classes]))
    _check_images(images, path)
    return _Results(images, {}, sha256_of("\n".join(lines).encode()), by_name)


class _TextReader:
    """Groups the lines of a text by image; those of an image must go from best to worst."""

    def __init__(self, path: Path) -> None:
        self.images: list[_ImageResult] = []
        self.class_names: dict[int, str] = {}
        self._path = path
        self._first_rank = 0  # tools count from 0 or from 1
        self._rank = 0
        self._probability = math.inf

    def add(self, number: int, text: str) -> None:
        """Enter line `number`."""
        match = LINE.fullmatch(text.rstrip())
        if not match:
            raise InputError(
                f"{self._path} line {number} is {text[:60]!r}; expected {LINE_FORMAT!r}, or a CSV "
                f"with {FORM}"
            )
        image, rank, class_id = match["image"], int(match["rank"]), int(match["id"])
        probability = self._parse_probability(match["prob"], number)
        # A rank that starts again is a second image of the same name, which is refused later.
        if not self.images or image != self.images[-1].image or rank <= self._rank:
            self._begin_image(image, rank)
        ids = self.images[-1].ids
        is_next = rank == self._rank + 1 and probability <= self._probability
        if not is_next or class_id in ids or class_id >= MAX_CLASSES:
            raise InputError(
                f"{self._path} line {number} is not the next best class of {image}; "
                "expected the classes of an image one after another, best first"
            )
        name = match["name"]
        if self.class_names.setdefault(class_id, name) != name:
            raise InputError(
                f"{self._path} line {number} calls the class {class_id} {name!r}; "
                f"a line above calls it {self.class_names[class_id]!r}"
            )
        ids.append(class_id)
        self._rank = rank
        self._probability = probability

    def _begin_image(self, image: str, rank: int) -> None:
        if not self.images:
            self._first_rank = rank
        self.images.append(_ImageResult(image))
        self._rank = self._first_rank - 1
        self._probability = math.inf

    def _parse_probability(self, text: str, number: int) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(
                f"{self._path} line {number} gives the probability {text!r}, "
                "so the outputs of this model are not finite numbers"
            )
        return value


def _check_images(images: Sequence[_ImageResult], path: Path) -> None:
    if not images:
        raise InputError(
            f"{path} is empty; expected one line for each of the best classes of each image"
        )
    image, times = Counter(result.image for result in images).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{path} has {image} {times} times: the tool appends to the file of an earlier run; "
            "remove the file and run the tool again"
        )
    shortest = min(images, key=lambda result: len(result.ids))
    longest = max(images, key=lambda result: len(result.ids))
    if len(shortest.ids) < len(longest.ids):
        raise InputError(
            f"{path} has {len(shortest.ids)} lines for {shortest.image} and {len(longest.ids)} for "
            "others, so it is incomplete; run the tool again"
        )


# Folders of arrays


def _read_arrays(folder: Path, datalist: Path | None, progress: Progress) -> _Results:
    files = _array_files(folder)
    images = _images_of(files, datalist, folder)
    pairs = list(zip(files, images, strict=True))
    results = []
    digests = []
    width = 0
    for path, image in tracked(pairs, "read outputs", len(files), progress):
        data = read_bounded(path, MAX_ARRAY_BYTES)
        logits = _logits(data, path)
        width = width or len(logits)
        if len(logits) != width:
            raise InputError(
                f"{path} holds {len(logits)} outputs, but {files[0].name} holds {width}; "
                "all must be of one model"
            )
        results.append(_ImageResult(image, best_classes(logits[None], TOP)[0].tolist()))
        digests.append(f"{path.name} {sha256_of(data)}")
    return _Results(results, {}, sha256_of("\n".join(digests).encode()))


def _array_files(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
    files = []
    for path in entries:
        # A copy from another system may bring along files such as ._a.npz.
        if path.suffix == ".npz" and not path.name.startswith("."):
            files.append(path)
    if not files:
        raise InputError(
            f"{folder} holds no .npz file; expected one for each image, with the logits as output_0"
        )
    return files


def _images_of(files: Sequence[Path], datalist: Path | None, folder: Path) -> list[str]:
    """The image of each file: by name, or by the order of the datalist."""
    if datalist is None:
        return [path.name for path in files]
    images = [line.strip() for line in read_lines(datalist, MAX_TEXT_BYTES)]
    if len(images) != len(files):
        raise InputError(
            f"{datalist} names {len(images)} images, but {folder} holds {len(files)} .npz files; "
            "run the tool again"
        )
    by_name = {_stem(image): image for image in images}
    names = [_stem(path.name) for path in files]
    if len(by_name) == len(images) and set(by_name) == set(names):
        return [by_name[name] for name in names]
    if sorted(files, key=_numbers) != list(files):
        raise InputError(
            f"the files of {folder} sort differently by name and by number ({files[0].name}, "
            f"{files[1].name}, ...), so the order of {datalist} does not say which is which; "
            "name them with leading zeros"
        )
    return images


def _numbers(path: Path) -> list[int]:
    """The numbers in the name of a file."""
    return list(map(int, re.findall(r"\d+", path.stem)))


def _logits(data: bytes, path: Path) -> npt.NDArray[np.float32]:
    """The one vector in `output_0` of an .npz file, whose content may be hostile.

    Nothing is unpickled, and a size that a header gives is compared with the bytes that are there
    before anything is allocated.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = archive.getinfo(ARRAY).file_size
            if size > MAX_ARRAY_BYTES:
                raise InputError(
                    f"{path}: output_0 has {size:,} bytes; at most {MAX_ARRAY_BYTES:,} are accepted"
                )
            content = io.BytesIO(archive.read(ARRAY))
        if np.lib.format.read_magic(content) == (1, 0):
            header = np.lib.format.read_array_header_1_0(content)
        else:
            header = np.lib.format.read_array_header_2_0(content)
        values = content.read()
    except KeyError:
        raise InputError(
            f"{path} holds no output_0; expected the logits of one image under that name"
        ) from None
    except InputError:
        raise
    # A damaged archive raises BadZipFile, zlib.error, NotImplementedError, ValueError, struct.error
    # and others.
    except Exception as error:
        raise InputError(f"{path} is not a readable .npz file: {error}") from None
    shape, _, dtype = header
    count = math.prod(shape)
    if dtype.kind not in "fiu" or count * dtype.itemsize != len(values):
        raise InputError(
            f"{path}: output_0 is {dtype} {shape} in {len(values):,} bytes; "
            "expected numbers, one for each class"
        )
    if count != max(shape, default=0) or count < 2:
        raise InputError(
            f"{path}: output_0 has the shape {shape}; expected the outputs of one image"
        )
    logits = np.frombuffer(values, dtype).astype(np.float32)
    if not np.isfinite(logits).all():
        raise InputError(
            f"{path}: the outputs are not finite (NaN or overflow), so this model has no accuracy"
        )
    return logits


# Matching with the data set


def _match_images(images: Sequence[str], dataset: Dataset, path: Path) -> list[int]:
    """The index in `dataset` of each image: by file name, and by class folder if needed."""
    by_stem: dict[str, list[int]] = {}
    for index, key in enumerate(dataset.keys):
        by_stem.setdefault(_stem(key), []).append(index)
    classes = frozenset(dataset.classes)
    indices = []
    for image in images:
        candidates = by_stem.get(_stem(image), [])
        candidates = _in_same_folder(image, candidates, dataset, classes)
        if len(candidates) != 1:
            count = f"{len(candidates)} images" if candidates else "no image"
            raise InputError(
                f"{path} has a result for {image}, but {dataset.name} has {count} of that name and "
                "class; give --data with the images that the tool evaluated"
            )
        indices.append(candidates[0])
    index, times = Counter(indices).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{path} has {times} results for {dataset.keys[index]}; each image may count once"
        )
    return indices


def _in_same_folder(
    image: str, candidates: Sequence[int], dataset: Dataset, classes: frozenset[str]
) -> list[int]:
    """Those of `candidates`, images with the name of `image`, that may be it by their folders.

    A folder decides where it names a class, or where several images share the name.
    """
    folder = _folder(image)
    same = []
    unsorted = []
    for index in candidates:
        own_folder = _folder(dataset.keys[index])
        if own_folder == folder:
            same.append(index)
        # The tool may have seen class folders where the data lies in one folder.
        elif own_folder not in classes:
            unsorted.append(index)
    if folder in classes:
        return same + unsorted
    if len(candidates) > 1 and same:
        return same
    return list(candidates)


def _stem(path: str) -> str:
    """The file name without folder and without the suffix of an image or of .npz."""
    name = PurePosixPath(path.replace("\\", "/")).name.removesuffix(".npz")
    head, dot, suffix = name.rpartition(".")
    return head if f"{dot}{suffix}".lower() in SUFFIXES else name


def _folder(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).parent.name


def _classes_in_order(
    dataset: Dataset, largest: int, names: Mapping[int, str], path: Path
) -> Sequence[int]:
    """The data's classes, in order, as the model's outputs; refused if anything contradicts it."""
    classes = dataset.classes
    are_synsets = all(SYNSET.fullmatch(name) for name in classes)
    # The order of some of ImageNet's folders is not that of a model's 1,000 outputs.
    is_part_of_imagenet = (
        are_synsets and len(classes) != IMAGENET_CLASSES and not dataset.ordered
    )
    if largest >= len(classes) or is_part_of_imagenet:
        raise InputError(
            f"{path} gives ids up to {largest}, and {dataset.name} has {len(classes)} classes, so "
            "their order does not say what an id means; put a classes.tsv into the data that lists "
            "the model's classes, one a line, in the order of its outputs"
        )
    known = {name: index for index, name in enumerate(classes)}
    for index, name in names.items():
        if known.get(name, index) != index:
            raise InputError(
                f"{path} calls the class {index} {name!r}, which is class {known[name]} in the "
                f"order of {dataset.name}; put a classes.tsv into the data that lists the classes "
                "in the order of the model's outputs"
            )
    return range(len(classes))
