"""The ImageNet (ILSVRC 2012) validation images in one flat folder, with their labels in any of the files that people have.

There are two numberings of the 1,000 classes, and to take one for the other gives an accuracy near 0.1 %:
- the *model's*: position in the sorted list of synsets (n01440764 is 0), as trained by Caffe, torchvision and timm;
- the *ILSVRC2012_ID* of the development kit, 1..1000 in an order of its own (n02119789, the kit fox, is 1).

| file | a line | numbering |
|---|---|---|
| LOC_val_solution.csv (Kaggle) | `ILSVRC2012_val_00000001,n01751748 111 108 230 366 ...` | names the synset |
| val.txt (Caffe), val_list.txt (PaddleClas) | `ILSVRC2012_val_00000001.JPEG 65` | the model's |
| imagenet_2012_validation_synset_labels.txt (TensorFlow) | `n01751748`, line i for image i | names the synset |
| ILSVRC2012_validation_ground_truth.txt (development kit) | `490`, line i for image i | ILSVRC2012_ID: needs meta.mat or map_clsloc.txt |

The classes come from LOC_synset_mapping.txt, synset_words.txt, synsets.txt or meta.mat / map_clsloc.txt; without any, from the
labels themselves where they name all 1,000 synsets.
Sources: readme.txt of ILSVRC2012_devkit_t12; caffe/data/ilsvrc12/get_ilsvrc_aux.sh; Kaggle "ImageNet Object Localization
Challenge", Data; tensorflow/models, research/slim/datasets.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from repzoo.data.dataset import Dataset, DataSource
from repzoo.data.folder import SUFFIXES, entries, load_under, stamp_under
from repzoo.errors import InputError, MissingExtra
from repzoo.storage import read_bounded, read_lines

CLASSES = 1000
IMAGE_FOLDERS = ("", "val", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val")
LABEL_FOLDERS = (
    "",
    "data",
    "ILSVRC2012_devkit_t12/data",
    "devkit/data",
    "ILSVRC2012_devkit_t12",
    "ILSVRC/ImageSets/CLS-LOC",
)
LISTS = (
    "LOC_synset_mapping.txt",
    "synset_words.txt",
    "synsets.txt",
    "imagenet_lsvrc_2015_synsets.txt",
)
NAME = re.compile(r"ILSVRC2012_val_(\d{8})$")
SYNSET = re.compile(r"n\d{8}$")
MAX_META_BYTES = 2**24
MAX_LABEL_BYTES = 2**25


def is_layout(root: Path) -> bool:
    """Whether `root` holds flat images and a file of labels, and no class folders beside them."""
    return _labels_file(root) is not None and _image_folder(root) is not None


def read(root: Path) -> DataSource:
    """The validation images of `root` as the part "validation"; classes in the model's order.

    Raises:
        InputError: an image without label, a label that is no class, ids whose meaning is not said, or damaged files.
        MissingExtra: only meta.mat says what the ids mean, and SciPy, which reads it, is not installed.
    """
    folder, file = _image_folder(root), _labels_file(root)
    if folder is None or file is None:
        raise InputError(
            f"{root} does not hold ImageNet's validation images and one of {', '.join(READERS)}"
        )
    names = _images(folder)
    classes, targets = READERS[file.name](root, file)
    order = {name: index for index, name in enumerate(classes)}
    found = [_target(targets, name, file) for name in names]
    if strange := next((label for label in found if label not in order), None):
        raise InputError(
            f"{file} gives the class {strange!r}, which is not among the {len(classes)} of {root}"
        )
    inside = folder.relative_to(root)
    keys = tuple(str(inside / name) for name in names)
    name = root.resolve().name + (
        "" if len(names) == len(targets) else f" ({len(names)} of {len(targets)} images)"
    )
    labeled = tuple(order[label] for label in found)
    data = Dataset(
        f"{name}/validation",
        tuple(classes),
        keys,
        labeled,
        partial(load_under, root),
        True,
        partial(stamp_under, root),
    )
    return DataSource(name, {"validation": data})


Labels = tuple[
    list[str], Mapping[str, str]
]  # (classes in the model's order, name of an image without suffix -> class)


def _kaggle(root: Path, file: Path) -> Labels:
    rows = csv.reader(read_lines(file, MAX_LABEL_BYTES))
    if (head := next(rows, [])) != ["ImageId", "PredictionString"]:
        raise InputError(
            f"{file} begins with {','.join(head)[:60]!r}; expected the header ImageId,PredictionString"
        )
    targets: dict[str, str] = {}
    for row in rows:
        words = row[1].split() if len(row) == 2 else []
        if len(set(words[::5])) != 1 or len(words) % 5:
            raise InputError(
                f"{file} gives {','.join(row)[:60]!r}; expected one synset with boxes: ImageId,synset x1 y1 x2 y2 ..."
            )
        _enter(targets, row[0], words[0], file)
    return _synsets(root, targets), targets


def _numbered(root: Path, file: Path) -> Labels:
    """`name index`, the index counted from 0 in the model's order."""
    pairs = [line.rsplit(maxsplit=1) for line in read_lines(file, MAX_LABEL_BYTES)]
    if bad := next((pair for pair in pairs if len(pair) != 2 or not pair[1].isdecimal()), None):
        raise InputError(
            f"{file} has the line {' '.join(bad)[:60]!r}; expected a name and a class index"
        )
    if (largest := max((int(index) for _, index in pairs), default=0)) >= CLASSES:
        raise InputError(
            f"{file} gives the class {largest}; expected 0..{CLASSES - 1}, the position in the sorted synsets"
        )
    classes = _listed(root) or [str(index) for index in range(CLASSES)]
    targets: dict[str, str] = {}
    for name, index in pairs:
        _enter(targets, Path(name).stem, classes[int(index)], file)
    return classes, targets


def _tensorflow(root: Path, file: Path) -> Labels:
    targets = {
        _image(number): line.strip()
        for number, line in enumerate(read_lines(file, MAX_LABEL_BYTES), 1)
    }
    return _synsets(root, targets), targets


def _development_kit(root: Path, file: Path) -> Labels:
    lines = read_lines(file, MAX_LABEL_BYTES)
    meaning = _meaning_of_ids(root, file)
    strange = next(
        (line for line in lines if not line.strip().isdecimal() or int(line) not in meaning), None
    )
    if strange is not None:
        raise InputError(
            f"{file} has the line {strange[:40]!r}; expected an ILSVRC2012_ID, 1..{CLASSES}"
        )
    return sorted(meaning.values()), {
        _image(number): meaning[int(line)] for number, line in enumerate(lines, 1)
    }


Reader = Callable[[Path, Path], Labels]
READERS: Mapping[str, Reader] = {  # first the files whose meaning needs no other
    "LOC_val_solution.csv": _kaggle,
    "imagenet_2012_validation_synset_labels.txt": _tensorflow,
    "val.txt": _numbered,
    "val_list.txt": _numbered,
    "ILSVRC2012_validation_ground_truth.txt": _development_kit,
}


def _meaning_of_ids(root: Path, file: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> synset, 1..1000."""
    if path := _find(root, "map_clsloc.txt"):
        rows = [line.split() for line in read_lines(path)]
        found = {
            int(row[1]): row[0]
            for row in rows
            if len(row) >= 2 and row[1].isdecimal() and SYNSET.match(row[0])
        }
    elif path := _find(root, "meta.mat"):
        found = _from_meta(path)
    else:
        raise InputError(
            f"{file} numbers the classes by ILSVRC2012_ID, which is not the order of a model's outputs; put the development kit's "
            f"meta.mat (or map_clsloc.txt) beside it"
        )
    if sorted(found) != list(range(1, CLASSES + 1)) or len(set(found.values())) != CLASSES:
        raise InputError(
            f"{path} does not give {CLASSES} different synsets the ids 1..{CLASSES}; take the development kit's own file"
        )
    return found


def _from_meta(path: Path) -> dict[int, str]:
    """The leaves of the development kit's hierarchy: ids 1..1000; the 860 above are inner nodes."""
    read_bounded(path, MAX_META_BYTES)
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise MissingExtra(f"reading {path}", "imagenet") from error
    try:
        rows = loadmat(str(path), squeeze_me=True, variable_names=["synsets"])["synsets"]
        pairs = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except Exception as error:  # of a damaged file SciPy raises errors of every kind
        raise InputError(
            f"{path} is not the development kit's meta.mat: {str(error) or type(error).__name__}"
        ) from None
    return {number: synset for number, synset in pairs.items() if number <= CLASSES}


def _synsets(root: Path, targets: Mapping[str, str]) -> list[str]:
    if listed := _listed(root):
        return listed
    if len(found := sorted(set(targets.values()))) == CLASSES:
        return found
    raise InputError(
        f"{root} names {len(found)} of {CLASSES} synsets in its labels; put {LISTS[0]} or {LISTS[1]} beside them"
    )


def _listed(root: Path) -> list[str]:
    """The synsets in the model's order, or [] where no file lists them. A list in another order would turn every class."""
    path = next((found for name in LISTS if (found := _find(root, name))), None)
    if path is None:
        return []
    synsets = [line.split()[0] for line in read_lines(path)]
    if len(synsets) != CLASSES or not all(SYNSET.match(one) for one in synsets):
        raise InputError(
            f"{path} has {len(synsets)} lines; expected {CLASSES}, each beginning with a synset such as n01440764"
        )
    if synsets != sorted(set(synsets)):
        raise InputError(
            f"{path} does not list the synsets in sorted order, which is that of a model's outputs; sort it"
        )
    return synsets


def _enter(targets: dict[str, str], name: str, label: str, file: Path) -> None:
    if targets.setdefault(name, label) != label:
        raise InputError(
            f"{file} gives {name} two classes, {targets[name]!r} and {label!r}; keep one"
        )


def _target(targets: Mapping[str, str], name: str, file: Path) -> str:
    stem = Path(name).stem
    if stem not in targets:
        raise InputError(
            f"the image {name} has no label in {file}; remove it, or complete the labels"
        )
    return targets[stem]


def _image(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def _labels_file(root: Path) -> Path | None:
    return next((path for name in READERS if (path := _find(root, name))), None)


def _find(root: Path, name: str) -> Path | None:
    places: Sequence[Path] = [root / folder / name for folder in LABEL_FOLDERS]
    return next((path for path in places if path.is_file()), None)


def _image_folder(root: Path) -> Path | None:
    """The folder with images directly in it; none where there are class folders, which say more."""
    for name in IMAGE_FOLDERS:
        if (folder := root / name).is_dir() and _images(folder):
            return folder
    return None


def _images(folder: Path) -> list[str]:
    try:
        return [
            name
            for name, is_dir in entries(folder)
            if not is_dir and Path(name).suffix.lower() in SUFFIXES
        ]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
