"""ImageNet's validation layout: every file of labels that people have, and the two numberings
that must not be confused.

The synsets here are made up, but five images have the labels that they have in truth: positions
65, 970, 230, 809 and 516 in the sorted synsets, ids 490, 361, 171, 822 and 297 in the
development kit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from repzoo.artifact import Artifact
from repzoo.data.source import open_source
from repzoo.errors import InputError

Photograph = Callable[..., Image.Image]
POSITIONS, IDS = (65, 970, 230, 809, 516), (490, 361, 171, 822, 297)
SYNSETS = tuple(f"n{1440764 + 7919 * index:08d}" for index in range(1000))


def synset_of_id() -> dict[int, str]:
    """A numbering in another order, in which the five have their own ids."""
    fixed = {
        number: SYNSETS[position]
        for number, position in zip(IDS, POSITIONS, strict=True)
    }
    others = iter(
        synset for synset in reversed(SYNSETS) if synset not in fixed.values()
    )
    return {number: fixed.get(number) or next(others) for number in range(1, 1001)}


MEANING = synset_of_id()


def name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def kaggle(root: Path) -> None:
    lines = [
        f"{name(number + 1)},{SYNSETS[place]} 1 2 3 4 {SYNSETS[place]} 5 6 7 8 "
        for number, place in enumerate(POSITIONS)
    ]
    (root / "LOC_val_solution.csv").write_text(
        "\n".join(["ImageId,PredictionString", *reversed(lines)]) + "\n"
    )
    (root / "LOC_synset_mapping.txt").write_text(
        "".join(f"{synset} crane, a bird\n" for synset in SYNSETS)
    )


def caffe(root: Path) -> None:
    (root / "val.txt").write_text(
        "".join(f"{name(i + 1)}.JPEG {place}\n" for i, place in enumerate(POSITIONS))
    )
    (root / "synset_words.txt").write_text(
        "".join(f"{synset} crane\n" for synset in SYNSETS)
    )


def paddle(root: Path) -> None:
    (root / "val_list.txt").write_text(
        "".join(
            f"val/{name(i + 1)}.JPEG {place}\n" for i, place in enumerate(POSITIONS)
        )
    )
    (root / "synsets.txt").write_text("\n".join(SYNSETS))


def tensorflow(root: Path) -> None:
    text = "".join(f"{SYNSETS[place]}\n" for place in POSITIONS)
    (root / "imagenet_2012_validation_synset_labels.txt").write_text(text)
    (root / "imagenet_lsvrc_2015_synsets.txt").write_text("\n".join(SYNSETS))


def ground_truth(root: Path) -> Path:
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "".join(f"{number}\n" for number in IDS)
    )
    return folder


def add_map(root: Path) -> None:
    text = "".join(f"{synset} {number} kit_fox\n" for number, synset in MEANING.items())
    (ground_truth(root) / "map_clsloc.txt").write_text(text)


def add_meta(root: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="SciPy is not installed")
    kind = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("num_children", object),
    ]
    leaves: list[Any] = [
        (number, synset, "crane", 0) for number, synset in MEANING.items()
    ]
    inner: list[Any] = [
        (number, f"n{number:08d}", "animal", 2) for number in range(1001, 1861)
    ]
    table = np.array([*leaves, *inner], kind).reshape(-1, 1)
    io.savemat(str(ground_truth(root) / "meta.mat"), {"synsets": table})


@pytest.fixture
def flat(tmp_path: Path, photograph: Photograph) -> Path:
    """Five images, and no labels yet."""
    root = tmp_path / "imagenet"
    (root / "val").mkdir(parents=True)
    for number in range(1, 6):
        photograph(20, 20, number).save(root / "val" / f"{name(number)}.JPEG")
    return root


@pytest.mark.parametrize(
    "labels", [kaggle, caffe, paddle, tensorflow, add_map, add_meta]
)
def test_every_file_of_labels_gives_the_models_numbering(
    labels: Callable[[Path], None], flat: Path
) -> None:
    labels(flat)
    data = open_source(flat).held_out()
    assert data.classes == SYNSETS
    assert data.ordered
    assert data.targets == POSITIONS
    assert data.keys == tuple(f"val/{name(number)}.JPEG" for number in range(1, 6))
    assert data.load(data.keys[0]).size == (20, 20)


@pytest.mark.parametrize(
    "folder", ["", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val"]
)
def test_images_lie_where_each_archive_puts_them(
    folder: str, flat: Path, tmp_path: Path
) -> None:
    root = tmp_path / "other"
    (root / folder).mkdir(parents=True)
    for path in (flat / "val").iterdir():
        path.rename(root / folder / path.name)
    kaggle(root)
    assert open_source(root).held_out().targets == POSITIONS


def test_a_subset_of_the_images_is_enough_and_is_named(flat: Path) -> None:
    add_map(flat)
    for number in (1, 4):
        (flat / "val" / f"{name(number)}.JPEG").unlink()
    data = open_source(flat).held_out()
    assert data.targets == tuple(POSITIONS[place] for place in (1, 2, 4))
    assert "3 of 5" in data.name


def test_class_folders_say_more_than_files_of_labels(flat: Path) -> None:
    caffe(flat)
    for place, number in zip(POSITIONS, range(1, 6), strict=True):
        folder = flat / "val" / SYNSETS[place]
        folder.mkdir()
        (flat / "val" / f"{name(number)}.JPEG").rename(folder / f"{name(number)}.JPEG")
    data = open_source(flat).held_out()
    assert sorted(data.classes) == sorted(SYNSETS[place] for place in POSITIONS)


def test_synset_ids_without_a_mapping_are_refused(
    flat: Path,
) -> None:
    ground_truth(flat)
    (flat / "synset_words.txt").write_text(
        "".join(f"{synset} crane\n" for synset in SYNSETS)
    )
    with pytest.raises(
        InputError,
        match=r"ILSVRC2012_ID, which is not the order of a model's outputs.*meta.mat",
    ):
        open_source(flat)


def overwrite(file: str, text: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        next(root.rglob(file)).write_text(text)

    return damage


BAD = [
    (
        kaggle,
        overwrite("LOC_val_solution.csv", "a,b\n"),
        "expected the header ImageId,PredictionString",
    ),
    (
        kaggle,
        overwrite(
            "LOC_val_solution.csv",
            f"ImageId,PredictionString\n{name(1)},{SYNSETS[0]} 1 2 3\n",
        ),
        "one synset with boxes",
    ),
    (
        kaggle,
        overwrite(
            "LOC_val_solution.csv",
            f"ImageId,PredictionString\n{name(1)},{SYNSETS[0]} 1 2 3 4 {SYNSETS[1]} 1 2 3 4\n",
        ),
        "one synset with boxes",
    ),
    (
        kaggle,
        overwrite(
            "LOC_val_solution.csv",
            f"ImageId,PredictionString\n{name(1)},{SYNSETS[0]} 1 2 3 4\n",
        ),
        "has no label",
    ),
    (
        kaggle,
        overwrite("LOC_synset_mapping.txt", "n01440764 tench\n"),
        "has 1 lines; expected 1000",
    ),
    (
        caffe,
        overwrite("synset_words.txt", "\n".join(reversed(SYNSETS))),
        "not list the synsets in sorted order",
    ),
    (
        caffe,
        overwrite("val.txt", f"{name(1)}.JPEG 1000\n"),
        "gives the class 1000; expected 0..999",
    ),
    (
        caffe,
        overwrite("val.txt", f"{name(1)}.JPEG sea snake\n"),
        "expected a name and a class index",
    ),
    (
        caffe,
        overwrite("val.txt", f"{name(1)}.JPEG 1\n{name(1)}.JPEG 2\n"),
        "two classes",
    ),
    (
        tensorflow,
        overwrite("imagenet_2012_validation_synset_labels.txt", "n99999999\n" * 5),
        "not among the 1000",
    ),
    (
        add_map,
        overwrite("ILSVRC2012_validation_ground_truth.txt", "0\n" * 5),
        "expected an ILSVRC2012_ID, 1..1000",
    ),
    (
        add_map,
        overwrite("map_clsloc.txt", "n02119789 1 kit_fox\n"),
        "does not give 1000 different synsets",
    ),
    (
        add_meta,
        overwrite("meta.mat", "not a matrix"),
        "is not the development kit's meta.mat",
    ),
]


@pytest.mark.parametrize(("labels", "damage", "message"), BAD)
def test_damaged_labels_are_one_sentence(
    labels: Callable[[Path], None],
    damage: Callable[[Path], None],
    message: str,
    flat: Path,
) -> None:
    labels(flat)
    damage(flat)
    with pytest.raises(InputError, match=message):
        open_source(flat)


def test_positions_without_names_fit_a_model_of_a_thousand_outputs(flat: Path) -> None:
    caffe(flat)
    (flat / "synset_words.txt").unlink()
    data = open_source(flat).held_out()
    assert (len(data.classes), data.ordered, data.targets) == (1000, True, POSITIONS)


def test_the_real_labels_of_the_first_images(flat: Path) -> None:
    listed = (
        Path(__file__).parents[2].parent
        / "shared"
        / "data"
        / "imagenet-sample"
        / "classes.tsv"
    )
    if not listed.is_file():
        pytest.skip("the ImageNet sample beside the checkout is absent")
    (flat / "synset_words.txt").write_text(listed.read_text().replace("\t", " "))
    (flat / "val.txt").write_text(
        "".join(f"{name(i + 1)}.JPEG {place}\n" for i, place in enumerate(POSITIONS))
    )
    data = open_source(flat).held_out()
    assert (
        data.classes[data.targets[0]] == "n01751748"
    )  # the sea snake, the first image's label in Kaggle's file too


def test_the_command_line_evaluates_a_flat_folder(
    run: Any, flat: Path, trained: Artifact
) -> None:
    caffe(flat)
    (flat / "synset_words.txt").unlink()
    path = flat / "model.onnx"
    trained.save(path)
    ran = run("evaluate", path, "--data", flat)
    assert ran.code == 2  # ten outputs, a thousand classes
    assert "(1000, such as" in ran.err
