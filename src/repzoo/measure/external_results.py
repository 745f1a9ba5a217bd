"""What other tools wrote of the same images, such as a board's own run, read into the same statistics.

- A text with a line for each of the best classes of an image, best first, as VastModelZOO's classification.py and
  vamp_npz_decode.py write it: `PATH: Relay top-K id: ID, prob: P, class name: NAME`. PATH may hold colons.
- A folder of .npz files, one for each image, with the logits as `output_0`, as vamp writes it with --datalist. Which file is of
  which image is said by equal names, or by the order of the datalist and of the sorted names.

Classes are matched by id, never by name: two classes of ImageNet are called "crane". The id is the position of the model's output.
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

import numpy as np
import numpy.typing as npt

from repzoo.artifact import Artifact
from repzoo.data.dataset import Dataset
from repzoo.data.folder import SUFFIXES
from repzoo.errors import InputError
from repzoo.measure.accuracy import SYNSET, Predictions, best_classes, class_indices
from repzoo.measure.journal import TOP
from repzoo.progress import Progress, silent, tracked
from repzoo.storage import read_bounded, read_lines, sha256_of

LINE = re.compile(
    r"(?P<image>.+): Relay top-(?P<rank>\d+) id: (?P<id>\d+), prob: (?P<prob>[^,]+), class name: (?P<name>.*)"
)
MAX_TEXT_BYTES = 2**28  # 50,000 images take about 40 MB
MAX_ARRAY_BYTES = 2**24  # of one image's output; 1,000 float32 take 4 kB
MAX_CLASSES = 2**20
ARRAY = "output_0.npy"


@dataclass
class _Said:
    """Of one image: its path as the tool wrote it, and the ids, best first."""

    image: str
    ids: list[int] = field(default_factory=list)


def read(
    path: Path,
    dataset: Dataset,
    datalist: Path | None = None,
    model: Artifact | None = None,
    progress: Progress = silent,
) -> tuple[Predictions, list[int]]:
    """(answers in the data set's order, indices into the data set of the images that they are of).

    datalist  for a folder of .npz: the text whose line i names the image of the i-th file
    model     what was run; it tells the classes of the ids. Without it they are the data's classes in order.

    Raises:
        InputError: an unknown format, damaged or doubled lines, images that the data lacks, ids beyond the classes,
            counts that do not fit, outputs that are not finite.
    """
    if path.is_dir():
        said, digest = _from_arrays(path, datalist, progress)
        names: Mapping[int, str] = {}
    else:
        if datalist:
            raise InputError(
                f"{path} is a file, and a datalist goes with a folder of .npz files; leave --datalist out"
            )
        said, names, digest = _from_text(path)
    indices = _matched([one.image for one in said], dataset, path)
    width = min(len(one.ids) for one in said)
    order = np.argsort(indices)
    top = np.array([one.ids[:width] for one in said], np.int64)[order]
    chosen = sorted(indices)
    mapping = (
        class_indices(dataset, model)
        if model
        else _by_position(dataset, int(top.max()), names, path)
    )
    keys = tuple(dataset.keys[index] for index in chosen)
    targets = np.array([mapping[dataset.targets[index]] for index in chosen])
    identity = {
        "name": path.name,
        "form": "external",
        "sha256": digest,
        "classes": None,
        "preprocess": None,
        "size": None,
    }
    data = {
        "name": dataset.name,
        "n": len(keys),
        "sha256": sha256_of("\n".join(keys).encode()),
        "unreadable": 0,
    }
    labels = model.labels if model else dataset.classes
    return Predictions(
        identity, labels, {"name": "external", "version": ""}, data, keys, targets, top
    ), chosen


def at(answers: Predictions, keys: Sequence[str]) -> Predictions:
    """`answers` to the images `keys` alone, all of which it must have."""
    place = {key: index for index, key in enumerate(answers.keys)}
    chosen = [place[key] for key in keys]
    data = {**answers.data, "n": len(chosen), "sha256": sha256_of("\n".join(keys).encode())}
    return replace(
        answers,
        keys=tuple(keys),
        targets=answers.targets[chosen],
        top=answers.top[chosen],
        data=data,
    )


def _from_text(path: Path) -> tuple[list[_Said], dict[int, str], str]:
    """(what is said of each image, name of each id, hash)."""
    lines = read_lines(path, MAX_TEXT_BYTES)
    said: list[_Said] = []
    names: dict[int, str] = {}
    first, last, probability = 0, 0, math.inf
    for number, text in enumerate(lines, 1):
        found = LINE.fullmatch(text.rstrip())
        if not found:
            raise InputError(
                f"{path} line {number} is {text[:60]!r}; expected 'PATH: Relay top-K id: ID, prob: P, class name: NAME'"
            )
        rank, index, now = (
            int(found["rank"]),
            int(found["id"]),
            _probability(found["prob"], path, number),
        )
        if not said or found["image"] != said[-1].image or rank <= last:
            said.append(_Said(found["image"]))
            first = first if len(said) > 1 else rank
            last, probability = first - 1, math.inf
        if rank != last + 1 or now > probability or index in said[-1].ids or index >= MAX_CLASSES:
            raise InputError(
                f"{path} line {number} does not go on with the best classes of {said[-1].image}, best first"
            )
        if names.setdefault(index, found["name"]) != found["name"]:
            raise InputError(
                f"{path} line {number} calls the class {index} {found['name']!r}, and above {names[index]!r}"
            )
        said[-1].ids.append(index)
        last, probability = rank, now
    _check_text(said, path)
    return said, names, sha256_of("\n".join(lines).encode())


def _probability(text: str, path: Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"{path} line {number} gives the probability {text!r}, so this model's outputs are not finite numbers"
        )
    return value


def _check_text(said: Sequence[_Said], path: Path) -> None:
    if not said:
        raise InputError(
            f"{path} is empty; expected one line for each of the best classes of each image"
        )
    image, times = Counter(one.image for one in said).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{path} tells of {image} {times} times: the tool appends to the file of an earlier run; remove the file and run it again"
        )
    counts = Counter(len(one.ids) for one in said)
    if len(counts) > 1:
        short = next(one for one in said if len(one.ids) == min(counts))
        raise InputError(
            f"{path} has {len(short.ids)} lines for {short.image} and {max(counts)} for others, so it was cut; run the tool again"
        )


def _from_arrays(
    folder: Path, datalist: Path | None, progress: Progress
) -> tuple[list[_Said], str]:
    try:
        files = sorted(
            path
            for path in folder.iterdir()
            if path.suffix == ".npz" and not path.name.startswith(".")
        )
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
    if not files:
        raise InputError(
            f"{folder} holds no .npz file; expected one for each image, with the logits as output_0"
        )
    images = _images_of(files, datalist, folder)
    said, digests, width = [], [], 0
    for path, image in tracked(
        list(zip(files, images, strict=True)), "read outputs", len(files), progress
    ):
        data = read_bounded(path, MAX_ARRAY_BYTES)
        logits = _logits(data, path)
        width = width or len(logits)
        if len(logits) != width:
            raise InputError(
                f"{path} holds {len(logits)} outputs, and {files[0].name} {width}; all must be of one model"
            )
        said.append(_Said(image, best_classes(logits[None], TOP)[0].tolist()))
        digests.append(f"{path.name} {sha256_of(data)}")
    return said, sha256_of("\n".join(digests).encode())


def _images_of(files: Sequence[Path], datalist: Path | None, folder: Path) -> list[str]:
    """The image of each file: by equal names, else by order."""
    if datalist is None:
        return [path.name for path in files]
    images = [line.strip() for line in read_lines(datalist, MAX_TEXT_BYTES)]
    if len(images) != len(files):
        raise InputError(
            f"{datalist} names {len(images)} images, but {folder} holds {len(files)} .npz files; run the tool again"
        )
    by_name = {_stem(image): image for image in images}
    if len(by_name) == len(images) and set(by_name) == {_stem(path.name) for path in files}:
        return [by_name[_stem(path.name)] for path in files]
    if sorted(
        files, key=lambda path: [int(part) for part in re.findall(r"\d+", path.stem)]
    ) != list(files):
        raise InputError(
            f"the files of {folder} sort differently by name and by number ({files[0].name}, {files[1].name}, ...), so the order "
            f"of {datalist} does not say which is which; name them with leading zeros"
        )
    return images


def _logits(data: bytes, path: Path) -> npt.NDArray[np.float32]:
    """The one vector in `output_0`. Nothing is unpickled, and no size is believed before it is compared with the bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = archive.getinfo(ARRAY).file_size
            if size > MAX_ARRAY_BYTES:
                raise InputError(
                    f"{path}: output_0 has {size:,} bytes; at most {MAX_ARRAY_BYTES:,} are accepted"
                )
            content = io.BytesIO(archive.read(ARRAY))
        version = np.lib.format.read_magic(content)
        reader = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, kind = reader(content)
        values = content.read()
    except KeyError:
        raise InputError(
            f"{path} holds no output_0; expected the logits of one image under that name"
        ) from None
    except InputError:
        raise
    except Exception as error:  # damaged archives: BadZipFile, zlib.error, NotImplementedError, ValueError, struct.error ...
        raise InputError(f"{path} is not a readable .npz file: {error}") from None
    if kind.kind not in "fiu" or math.prod(shape) * kind.itemsize != len(values):
        raise InputError(
            f"{path}: output_0 is {kind} {shape} in {len(values):,} bytes; expected numbers, one for each class"
        )
    if math.prod(shape) != max(shape, default=0) or math.prod(shape) < 2:
        raise InputError(
            f"{path}: output_0 has the shape {shape}; expected the outputs of one image"
        )
    logits = np.frombuffer(values, kind).astype(np.float32)
    if not np.isfinite(logits).all():
        raise InputError(
            f"{path}: outputs that are not finite (NaN or overflow), so this model has no accuracy"
        )
    return logits


def _matched(images: Sequence[str], dataset: Dataset, path: Path) -> list[int]:
    """Index into `dataset` of each image: by name without suffix, and by the class folder where that is not enough."""
    by_stem: dict[str, list[int]] = {}
    for index, key in enumerate(dataset.keys):
        by_stem.setdefault(_stem(key), []).append(index)
    classes = frozenset(dataset.classes)
    found = [
        _index(image, by_stem.get(_stem(image), []), dataset, classes, path) for image in images
    ]
    index, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{path} tells of {dataset.keys[index]} {times} times; each image may count once"
        )
    return found


def _index(
    image: str, candidates: Sequence[int], dataset: Dataset, classes: frozenset[str], path: Path
) -> int:
    folder = _folder(image)
    own = {index: _folder(dataset.keys[index]) for index in candidates}
    if folder in classes:
        candidates = [
            index for index in candidates if own[index] == folder or own[index] not in classes
        ]
    elif len(candidates) > 1:
        candidates = [index for index in candidates if own[index] == folder] or candidates
    if len(candidates) != 1:
        said = f"{len(candidates)} images" if candidates else "no image"
        raise InputError(
            f"{path} tells of {image}, but {dataset.name} has {said} of that name and class; give --data with its images"
        )
    return candidates[0]


def _stem(path: str) -> str:
    name = PurePosixPath(path.replace("\\", "/")).name.removesuffix(".npz")
    head, dot, suffix = name.rpartition(".")
    return head if f"{dot}{suffix}".lower() in SUFFIXES else name


def _folder(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).parent.name


def _by_position(
    dataset: Dataset, largest: int, names: Mapping[int, str], path: Path
) -> Sequence[int]:
    """The data's classes, in their order, as the model's outputs; refused where anything speaks against it."""
    classes = dataset.classes
    some_synsets = (
        all(SYNSET.fullmatch(name) for name in classes)
        and len(classes) != 1000
        and not dataset.ordered
    )
    if largest >= len(classes) or some_synsets:
        raise InputError(
            f"{path} gives ids up to {largest}, and {dataset.name} has {len(classes)} classes, so their order does not say what an id "
            "means; put a classes.tsv into the data with the model's classes, one a line in the order of its outputs"
        )
    known = {name: index for index, name in enumerate(classes)}
    for index, name in names.items():
        if known.get(name, index) != index:
            raise InputError(
                f"{path} calls the class {index} {name!r}, which is class {known[name]} in the order of {dataset.name}; put a "
                "classes.tsv into the data that lists the classes in the order of the model's outputs"
            )
    return range(len(classes))


def covered(dataset: Dataset, indices: Sequence[int]) -> Iterator[str]:
    """What a person should know when only some of the images were evaluated."""
    if len(indices) < len(dataset):
        yield f"evaluated on the {len(indices)} of {len(dataset)} images of {dataset.name} that the results are of"
