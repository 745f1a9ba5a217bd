"""Tables of labels beside the images: Hugging Face's imagefolder and Roboflow's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from repzoo.data.source import open_source
from repzoo.errors import InputError

Place = Callable[..., Path]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """`place(text, "train/a.png", table="metadata.csv")`: a folder of images and a table."""

    def write(text: str, *images: str, table: str = "metadata.csv") -> Path:
        root = tmp_path / "data"
        for name in images:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
        path = root / table
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return root

    return write


def test_metadata_of_hugging_face_gives_the_labels(place: Place) -> None:
    text = (
        'file_name,caption,label\na.png,"one, two",dog\nsub/b.png,x,cat\nc.png,y,dog\n'
    )
    root = place(text, "a.png", "sub/b.png", "c.png", "unlisted.png")
    source = open_source(root)
    part = source.parts["all"]
    assert source.classes == ("cat", "dog")
    labels = dict(zip(part.keys, part.targets, strict=True))
    assert labels == {"a.png": 1, "c.png": 1, "sub/b.png": 0}
    assert "1 image not listed in metadata.csv (unlisted.png)" in str(
        source.describe_evaluation()
    )


def test_metadata_as_json_lines_has_texts_or_indices(place: Place) -> None:
    rows = [{"file_name": f"{index}.png", "label": index % 11} for index in range(22)]
    text = "\n".join(json.dumps(row) for row in rows)
    names = [f"{index}.png" for index in range(22)]
    source = open_source(place(text, *names, table="metadata.jsonl"))
    assert source.classes == tuple(map(str, range(11)))
    assert source.order == "in numeric order"


def test_a_table_in_each_part_as_roboflow_writes(place: Place) -> None:
    text = "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 0, 1\n"
    roots = set()
    for part in ("train", "valid", "test"):
        images = (f"{part}/a.jpg", f"{part}/b.jpg")
        roots.add(place(text, *images, table=f"{part}/_classes.csv"))
    (root,) = roots
    source = open_source(root)
    assert list(source.parts) == ["train", "valid", "test"]
    assert source.classes == ("cat", "dog")
    assert source.parts["valid"].keys == ("valid/a.jpg", "valid/b.jpg")
    assert [part.training for part in source.parts.values()] == [True, False, False]


def test_several_labels_are_refused_where_labels_are_needed(place: Place) -> None:
    text = "filename,cat,dog\na.png,1,1\nb.png,0,1\n"
    root = place(text, "a.png", "b.png", table="_classes.csv")
    with pytest.raises(InputError, match=r"gives a\.png 2 labels"):
        open_source(root)
    unlabeled = open_source(root, unlabeled=True).parts["all"]
    assert (len(unlabeled), unlabeled.labeled) == (2, False)


def test_a_table_without_labels_changes_nothing(place: Place) -> None:
    text = "file_name,text\ncat/a.png,a cat, of course\n"
    source = open_source(place(text, "cat/a.png", "dog/b.png"))
    assert source.classes == ("cat", "dog")
    assert "metadata.csv" in str(source.describe_evaluation())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\n../x.png,cat\n/etc/x.png,dog\n", "none of the files"),
        ("file_name,label\na.png,cat,dog\n", "another number of columns"),
        ("file_name,label\na.png,\n", "no label"),
        ("file_name,label\na.png,cat\na.png,dog\n", "keep one label"),
        ("file_name,label\na.png,cat\nb/b.png,cat\n", "only the class 'cat'"),
        ('file_name,label\n"a.png,cat\n', "cannot be read as a table"),
        ("file_name,label\na.png,b\nb/b.png,cat\n", "of another class"),
    ],
)
def test_what_is_no_table_of_these_images_is_refused(
    place: Place, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_source(place(text, "a.png", "b/b.png"))


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"file_name": 1, "label": []}', "[" * 9999]
)
def test_damaged_json_lines_are_refused(place: Place, text: str) -> None:
    with pytest.raises(InputError, match="cannot be read as a table of labels"):
        open_source(place(text, "a.png", "b.png", table="metadata.jsonl"))


def test_two_tables_are_refused(place: Place) -> None:
    text = "file_name,label\na.png,cat\nb.png,dog\n"
    place(text, "a.png", "b.png")
    root = place("filename,cat,dog\na.png,1,0\n", table="_classes.csv")
    with pytest.raises(InputError, match="keep one of them"):
        open_source(root)
