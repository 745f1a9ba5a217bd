"""Which folders are parts and classes, what is passed over, and what a data set says of itself."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from repzoo.data.folder import read, read_unlabeled
from repzoo.data.names import are_indices, match_names, part_role, reading_key
from repzoo.errors import InputError

Run = Callable[..., Any]


def save_images(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


@pytest.mark.parametrize(
    "held", ["val", "valid", "Validation", "dev", "TEST", "testing", "eval"]
)
def test_the_usual_names_of_held_out_parts_are_known(tmp_path: Path, held: str) -> None:
    save_images(
        tmp_path, "Train/a/1.png", "Train/b/1.png", f"{held}/a/2.png", f"{held}/b/2.png"
    )
    source = read(tmp_path)
    assert source.held_out().keys == (f"{held}/a/2.png", f"{held}/b/2.png")
    assert not source.held_out().training
    assert not source.held_out().remarks()
    assert source.join("train").keys == ("Train/a/1.png", "Train/b/1.png")
    assert source.training_parts() == ["Train"]
    role = part_role(held)
    assert source.join(role).keys == source.held_out().keys


def test_one_folder_around_the_parts_is_stepped_into(tmp_path: Path) -> None:
    save_images(
        tmp_path, "data/train/a/1.png", "data/train/b/1.png", "data/test/a/2.png"
    )
    source = read(tmp_path)
    assert list(source.parts) == ["train", "test"]
    assert source.held_out().keys == ("data/test/a/2.png",)


def test_parts_below_the_classes_are_parts_too(tmp_path: Path) -> None:
    save_images(
        tmp_path, "a/train/1.png", "a/val/2.png", "b/train/1.png", "b/val/2.png"
    )
    source = read(tmp_path)
    assert source.held_out().keys == ("a/val/2.png", "b/val/2.png")
    assert source.classes == ("a", "b")


def test_only_training_images_are_scored_with_a_remark(tmp_path: Path) -> None:
    save_images(tmp_path, "p/train/a/1.png", "p/train/b/1.png")
    for root in (tmp_path / "p", tmp_path / "p" / "train"):
        held_out = read(root).held_out()
        assert held_out.training
        assert "training images" in held_out.remarks()[0]
    save_images(tmp_path, "q/a/1.png", "q/b/1.png")
    assert not read(tmp_path / "q").held_out().remarks()


def test_images_count_at_any_depth_and_with_any_suffix(tmp_path: Path) -> None:
    save_images(tmp_path, "a/1.png", "a/deep/er/2.png", "b/no_suffix", "b/3.weird")
    for kind in ("PPM", "TGA", "JPEG2000", "AVIF"):
        suffix = {"JPEG2000": "jp2"}.get(kind, kind.lower())
        Image.new("RGB", (4, 4)).save(tmp_path / "b" / f"x.{suffix}", kind)
    data = read(tmp_path).parts["all"]
    assert data.keys[:2] == ("a/1.png", "a/deep/er/2.png")
    assert len(data) == 8
    assert data.targets == (0, 0, 1, 1, 1, 1, 1, 1)
    assert {data.load(key).size for key in data.keys} == {(4, 4)}


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    save_images(
        tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/2.png"
    )
    save_images(tmp_path, "val/loose.png", "holdout/a/1.png", "holdout/b/2.png")
    (tmp_path / "README.txt").write_text("P3 is no image, and BM neither")
    (tmp_path / "train" / "c").mkdir()
    description = read(tmp_path).describe_evaluation()
    line = str(description)
    assert line.startswith(f"{tmp_path.name}: val (2 images, evaluated), ")
    assert "train (2 images, not used)" in line
    assert "2 classes sorted by name: a, b" in line
    assert "3 images in no class folder of a part (holdout/a/1.png" in line
    assert "val/loose.png" in line
    assert "1 folder without images (c)" in line
    assert "1 file that Pillow cannot read (README.txt)" in line
    document = description.to_json()
    assert document["summary"] == line
    assert document["class_names"] == ["a", "b"]
    assert [item["count"] for item in document["passed_over"]] == [3, 1, 1]


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    save_images(tmp_path, "a/1.png", "b/1.png")
    try:
        (tmp_path / "a" / "round").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this file system has no links")
    assert read(tmp_path).parts["all"].keys == ("a/1.png", "b/1.png")


def test_folders_of_systems_are_ignored(tmp_path: Path) -> None:
    save_images(tmp_path, "a/1.png", "b/1.png", "__MACOSX/a/1.png", "a/@eaDir/1.png")
    source = read(tmp_path)
    assert source.parts["all"].keys == ("a/1.png", "b/1.png")
    assert not source.empty


def test_folders_called_by_the_indices_are_in_numeric_order(tmp_path: Path) -> None:
    save_images(tmp_path, *(f"{number}/1.png" for number in range(12)))
    source = read(tmp_path)
    assert source.classes == tuple(map(str, range(12)))
    assert source.order == "in numeric order"
    targets = dict(zip(source.held_out().keys, source.held_out().targets, strict=True))
    assert targets["10/1.png"] == 10


def test_other_numbers_are_sorted_as_torchvision_sorts_them(tmp_path: Path) -> None:
    save_images(tmp_path, *(f"{number}/1.png" for number in range(1, 12)))
    assert read(tmp_path).classes[:3] == ("1", "10", "11")
    assert are_indices(["0", "01"])
    assert not are_indices(["0", "00"])
    assert not are_indices(["1", "2"])
    assert not are_indices(["0", "²"])


def test_folders_that_read_alike_are_one_class_across_parts(tmp_path: Path) -> None:
    composed = "caf\u00e9 au_lait"
    other = unicodedata.normalize("NFD", "Caf\u00e9-au lait")
    save_images(tmp_path, f"train/{composed}/1.png", "train/b/1.png")
    save_images(tmp_path, f"test/{other}/2.png", "test/B/2.png")
    source = read(tmp_path)
    assert source.classes == ("b", composed)
    assert sorted(source.held_out().targets) == [0, 1]


def test_folders_that_read_alike_are_two_classes_in_one_part(tmp_path: Path) -> None:
    save_images(tmp_path, "red/1.png", "blue_green/1.png", "blue-green/1.png")
    assert read(tmp_path).classes == ("blue-green", "blue_green", "red")


def test_classes_tsv_may_spell_a_folder_in_another_way(tmp_path: Path) -> None:
    save_images(tmp_path, "Blue_Green/1.png", "red/1.png")
    (tmp_path / "classes.tsv").write_text("red\nblue green\n")
    source = read(tmp_path)
    assert source.classes == ("red", "blue green")
    assert source.held_out().targets == (1, 0)


def test_names_match_as_people_read_them_where_that_is_unambiguous() -> None:
    assert reading_key("  Hot_Dog ") == reading_key("hot-dog") == "hot dog"
    assert match_names(["Hot_Dog", "cat"], ["hot dog", "cat"]) == {
        "Hot_Dog": "hot dog",
        "cat": "cat",
    }
    assert match_names(["Cat"], ["cat", "CAT"]) == {}
    assert match_names(["Cat", "CAT"], ["cat"]) == {}
    assert match_names(["Cat", "cat"], ["cat"]) == {"cat": "cat"}


@pytest.mark.parametrize("folder", ["", "all/"])
def test_images_without_classes_are_a_data_set_without_labels(
    tmp_path: Path, folder: str
) -> None:
    save_images(tmp_path, f"{folder}1.png", f"{folder}2.png")
    source = read_unlabeled(tmp_path)
    assert source is not None
    assert not source.parts["all"].labeled
    assert source.parts["all"].keys == (f"{folder}1.png", f"{folder}2.png")
    assert "2 images (calibration and gate); no labels" in str(
        source.describe_quantization()
    )
    save_images(tmp_path, "a/1.png", "b/1.png")
    assert read_unlabeled(tmp_path) is None


def test_an_unknown_part_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    save_images(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    with pytest.raises(InputError, match="has no part 'test'; it has train, val"):
        read(tmp_path).join("test")
    with pytest.raises(InputError, match="named twice"):
        read(tmp_path).join("val", "validation")


def test_evaluate_says_how_the_folder_was_read(
    run: Run, model_file: Path, tmp_path: Path
) -> None:
    for part, level in (("train", 0), ("valid", 255)):
        for name in "01":
            path = tmp_path / part / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((8, 8), level, np.uint8)).save(path)
    ran = run("evaluate", model_file, "--data", tmp_path, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["data"]["parts"] == [
        {"name": "train", "images": 2, "use": "not used"},
        {"name": "valid", "images": 2, "use": "evaluated"},
    ]
    assert f"data: {ran.document['data']['summary']}\n" in ran.err
    trained_on = run("evaluate", model_file, "--data", tmp_path, "--part", "train")
    assert "training images" in trained_on.err
