"""ImageNet (ILSVRC 2012) validation images in one flat folder, with labels in any common format.

The 1,000 classes have two numberings. Mistaking one for the other gives an accuracy near 0.1 %:

- the *model index*: position in the sorted list of synsets (n01440764 is 0), used by Caffe,
  torchvision and timm;
- the *ILSVRC2012_ID* of the development kit: 1..1000 in another order (n02119789, kit fox, is 1).

| file | one line | numbering |
|---|---|---|
| LOC_val_solution.csv (Kaggle) | `ILSVRC2012_val_00000001,n01751748 111 108 ...` | synset |
| val.txt (Caffe), val_list.txt (PaddleClas) | `ILSVRC2012_val_00000001.JPEG 65` | model index |
| imagenet_2012_validation_synset_labels.txt (TensorFlow) | `n01751748`, by line | synset |
| ILSVRC2012_validation_ground_truth.txt (development kit) | `490`, by line | ILSVRC2012_ID |

"By line" means that line i belongs to image i. ILSVRC2012_IDs need meta.mat or map_clsloc.txt.
The list of classes comes from LOC_synset_mapping.txt, synset_words.txt, synsets.txt, meta.mat or
map_clsloc.txt, or from the labels if they name all 1,000 synsets.

Sources: readme.txt of ILSVRC2012_devkit_t12; caffe/data/ilsvrc12/get_ilsvrc_aux.sh; Kaggle
"ImageNet Object Localization Challenge", Data; tensorflow/models, research/slim/datasets.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from repzoo.data.dataset import Dataset, DataSource
from repzoo.data.folder import load_under, stamp_under
from repzoo.data.tree import image_names
from repzoo.errors import InputError, MissingExtra
from repzoo.storage import read_bounded, read_lines

CLASSES = 1000
IMAGE_FOLDERS = (
    "",
    "val",
    "ILSVRC2012_img_val",
    "ILSVRC/Data/CLS-LOC/val",
    "Data/CLS-LOC/val",
)
LABEL_FOLDERS = (
    "",
    "data",
    "ILSVRC2012_devkit_t12/data",
    "devkit/data",
    "ILSVRC2012_devkit_t12",
    "ILSVRC/ImageSets/CLS-LOC",
)
SYNSET_LISTS = (
    "LOC_synset_mapping.txt",
    "synset_words.txt",
    "synsets.txt",
    "imagenet_lsvrc_2015_synsets.txt",
)
SYNSET = re.compile(r"n\d{8}$")
MAX_META_BYTES = 2**24
MAX_LABEL_BYTES = 2**25

# (classes in the order of the model's outputs, image name without suffix -> class).
Labels = tuple[list[str], Mapping[str, str]]
LabelReader = Callable[[Path, Path], Labels]


def is_layout(root: Path) -> bool:
    """Whether `root` holds flat images and a label file, and no class folders."""
    return _label_file(root) is not None and _image_folder(root) is not None


def read(root: Path) -> DataSource:
    """The validation images of `root` as the part "validation", classes in model order.

    Raises:
        InputError: an image without a label, an unknown class, ILSVRC2012_IDs without their
            meaning, or a damaged file.
        MissingExtra: only meta.mat explains the IDs, and SciPy, which reads it, is missing.
    """
    folder = _image_folder(root)
    label_file = _label_file(root)
    if folder is None or label_file is None:
        files = ", ".join(LABEL_READERS)
        raise InputError(
            f"{root} does not hold ImageNet's validation images and one of {files}"
        )

    classes, labels = LABEL_READERS[label_file.name](root, label_file)
    index_of = {label: index for index, label in enumerate(classes)}
    names = _images(folder)
    targets: list[int] = []
    for name in names:
        label = _label_of(name, labels, label_file)
        if label not in index_of:
            raise InputError(
                f"{label_file} gives the class {label!r}, which is not among the {len(classes)} "
                f"of {root}"
            )
        targets.append(index_of[label])

    source_name = root.resolve().name
    if len(names) != len(labels):
        source_name += f" ({len(names)} of {len(labels)} images)"
    relative = folder.relative_to(root)
    data = Dataset(
        name=f"{source_name}/validation",
        classes=tuple(classes),
        keys=tuple(str(relative / name) for name in names),
        targets=tuple(targets),
        load=partial(load_under, root),
        ordered=True,
        stamp=partial(stamp_under, root),
    )
    return DataSource(source_name, {"validation": data}, order="of sorted synsets")


# --- one reader per label file ------------------------------------------------------------------


def _read_kaggle(root: Path, file: Path) -> Labels:
    rows = csv.reader(read_lines(file, MAX_LABEL_BYTES))
    header = next(rows, [])
    if header != ["ImageId", "PredictionString"]:
        raise InputError(
            f"{file} begins with {','.join(header)[:60]!r}; expected the header "
            "ImageId,PredictionString"
        )
    labels: dict[str, str] = {}
    for row in rows:
        words = row[1].split() if len(row) == 2 else []
        # Each object is a synset and four box corners; all objects of an image have one synset.
        if len(words) % 5 or len(set(words[::5])) != 1:
            raise InputError(
                f"{file} gives {','.join(row)[:60]!r}; expected one synset with boxes: "
                "ImageId,synset x1 y1 x2 y2 ..."
            )
        _add_label(labels, row[0], words[0], file)
    return _all_synsets(root, labels.values()), labels


def _read_indexed(root: Path, file: Path) -> Labels:
    """Lines `name index`, where index is the model index."""
    classes = _listed_synsets(root) or [str(index) for index in range(CLASSES)]
    labels: dict[str, str] = {}
    for line in read_lines(file, MAX_LABEL_BYTES):
        words = line.rsplit(maxsplit=1)
        if len(words) != 2 or not words[1].isdecimal():
            text = " ".join(words)[:60]
            raise InputError(
                f"{file} has the line {text!r}; expected a name and a class index"
            )
        name, index = words[0], int(words[1])
        if index >= CLASSES:
            raise InputError(
                f"{file} gives the class {index}; expected 0..{CLASSES - 1}, the position in the "
                "sorted synsets"
            )
        _add_label(labels, Path(name).stem, classes[index], file)
    return classes, labels


def _read_tensorflow(root: Path, file: Path) -> Labels:
    lines = read_lines(file, MAX_LABEL_BYTES)
    labels = {_image_name(number): line.strip() for number, line in enumerate(lines, 1)}
    return _all_synsets(root, labels.values()), labels


def _read_development_kit(root: Path, file: Path) -> Labels:
    lines = read_lines(file, MAX_LABEL_BYTES)
    synset_of = _synset_of_id(root, file)
    labels: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip().isdecimal() or int(line) not in synset_of:
            raise InputError(
                f"{file} has the line {line[:40]!r}; expected an ILSVRC2012_ID, 1..{CLASSES}"
            )
        labels[_image_name(number)] = synset_of[int(line)]
    return sorted(synset_of.values()), labels


# In order of preference: files that need no second file to be understood come first.
LABEL_READERS: Mapping[str, LabelReader] = {
    "LOC_val_solution.csv": _read_kaggle,
    "imagenet_2012_validation_synset_labels.txt": _read_tensorflow,
    "val.txt": _read_indexed,
    "val_list.txt": _read_indexed,
    "ILSVRC2012_validation_ground_truth.txt": _read_development_kit,
}


def _add_label(labels: dict[str, str], name: str, label: str, file: Path) -> None:
    if labels.setdefault(name, label) != label:
        raise InputError(
            f"{file} gives {name} two classes, {labels[name]!r} and {label!r}; keep one"
        )


def _label_of(name: str, labels: Mapping[str, str], file: Path) -> str:
    stem = Path(name).stem
    if stem not in labels:
        raise InputError(
            f"the image {name} has no label in {file}; remove it, or complete the labels"
        )
    return labels[stem]


def _image_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


# --- synsets ------------------------------------------------------------------------------------


def _synset_of_id(root: Path, file: Path) -> dict[int, str]:
    """ILSVRC2012_ID (1..1000) -> synset."""
    text = _find(root, "map_clsloc.txt")
    matlab = _find(root, "meta.mat")
    if text is not None:
        path = text
        synset_of = _ids_from_text(text)
    elif matlab is not None:
        path = matlab
        synset_of = _ids_from_meta(matlab)
    else:
        raise InputError(
            f"{file} numbers the classes by ILSVRC2012_ID, which is not the order of a model's "
            "outputs; put the development kit's meta.mat (or map_clsloc.txt) beside it"
        )
    has_all_ids = sorted(synset_of) == list(range(1, CLASSES + 1))
    if not has_all_ids or len(set(synset_of.values())) != CLASSES:
        raise InputError(
            f"{path} does not give {CLASSES} different synsets the ids 1..{CLASSES}; take the "
            "development kit's own file"
        )
    return synset_of


def _ids_from_text(path: Path) -> dict[int, str]:
    """Lines `synset id name` of map_clsloc.txt."""
    synset_of: dict[int, str] = {}
    for line in read_lines(path):
        words = line.split()
        if len(words) >= 2 and words[1].isdecimal() and SYNSET.match(words[0]):
            synset_of[int(words[1])] = words[0]
    return synset_of


def _ids_from_meta(path: Path) -> dict[int, str]:
    """The leaves of the hierarchy in meta.mat: ids 1..1000. The 860 ids above are inner nodes."""
    read_bounded(path, MAX_META_BYTES)
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise MissingExtra(f"reading {path}", "imagenet") from error
    try:
        rows = loadmat(str(path), squeeze_me=True, variable_names=["synsets"])[
            "synsets"
        ]
        synset_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    # On damaged files SciPy raises errors of any kind.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path} is not the development kit's meta.mat: {reason}"
        ) from None
    return {number: synset for number, synset in synset_of.items() if number <= CLASSES}


def _all_synsets(root: Path, labels: Iterable[str]) -> list[str]:
    """The synsets in model order: those listed in a file, else those of the labels if complete."""
    listed = _listed_synsets(root)
    if listed:
        return listed
    synsets = sorted(set(labels))
    if len(synsets) == CLASSES:
        return synsets
    raise InputError(
        f"{root} names {len(synsets)} of {CLASSES} synsets in its labels; put {SYNSET_LISTS[0]} "
        f"or {SYNSET_LISTS[1]} beside them"
    )


def _listed_synsets(root: Path) -> list[str]:
    """The synsets that a file lists in model order; [] without such a file."""
    path = _find_first(root, SYNSET_LISTS)
    if path is None:
        return []
    synsets = [line.split()[0] for line in read_lines(path)]
    if len(synsets) != CLASSES or not all(SYNSET.match(synset) for synset in synsets):
        raise InputError(
            f"{path} has {len(synsets)} lines; expected {CLASSES}, each beginning with a synset "
            "such as n01440764"
        )
    # A list in another order would permute every class without an error.
    if synsets != sorted(set(synsets)):
        raise InputError(
            f"{path} does not list the synsets in sorted order, which is that of a model's "
            "outputs; sort it"
        )
    return synsets


# --- where the files are ------------------------------------------------------------------------


def _label_file(root: Path) -> Path | None:
    return _find_first(root, LABEL_READERS)


def _find_first(root: Path, names: Iterable[str]) -> Path | None:
    for name in names:
        path = _find(root, name)
        if path is not None:
            return path
    return None


def _find(root: Path, name: str) -> Path | None:
    for folder in LABEL_FOLDERS:
        path = root / folder / name
        if path.is_file():
            return path
    return None


def _image_folder(root: Path) -> Path | None:
    """The first known folder with images directly in it."""
    for name in IMAGE_FOLDERS:
        folder = root / name
        if folder.is_dir() and _images(folder):
            return folder
    return None


def _images(folder: Path) -> list[str]:
    try:
        return image_names(folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
