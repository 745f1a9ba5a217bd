"""Results that boards write: a hand-written file, our own run in their formats, and damage."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from repzoo.artifact import Artifact
from repzoo.data import folder
from repzoo.data.batches import ReadReport
from repzoo.data.dataset import Dataset
from repzoo.engines import engine
from repzoo.errors import InputError
from repzoo.measure import accuracy
from repzoo.measure import external_results as outputs

SYNSETS = tuple(f"n{number:08d}" for number in range(1000))
CRANES = (134, 517)  # of ImageNet's classes, both are called "crane"


def relay_lines(
    image: str, ids: Sequence[int], names: Callable[[int], str] = str, start: int = 1
) -> str:
    return "".join(
        f"{image}: Relay top-{start + rank} id: {index}, "
        f"prob: {0.9 - rank / 10:.8f}, class name: {names(index)}\n"
        for rank, index in enumerate(ids)
    )


def refuse_to_load(key: str) -> Image.Image:
    raise AssertionError(f"{key} was opened")


def imagenet(targets: Sequence[int], flat: bool = False) -> Dataset:
    keys = tuple(
        f"{'val' if flat else SYNSETS[target]}/ILSVRC2012_val_{i:08d}.JPEG"
        for i, target in enumerate(targets)
    )
    return Dataset("imagenet/val", SYNSETS, keys, tuple(targets), refuse_to_load, True)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("start", [0, 1])
def test_classes_of_the_same_name_are_told_apart_by_id(
    flat: bool, start: int, tmp_path: Path
) -> None:
    """Top-1 is the other crane: correct by class name, as the vendor's script counts, but wrong."""
    bird, machine = CRANES
    data = imagenet([bird, machine, 3], flat)
    lines = [
        ([machine, bird, 1, 2, 3], 0),
        ([machine, 4, 5, 6, 7], 1),
        ([9, 8, 7, 6, 5], 2),
    ]
    path = tmp_path / "result.txt"
    text = (
        relay_lines(
            f"/a:b/{SYNSETS[data.targets[i]]}/ILSVRC2012_val_{i:08d}.JPEG",
            ids,
            lambda _: "crane: x",
            start,
        )
        for ids, i in reversed(lines)
    )
    path.write_text("".join(text))
    results, indices = outputs.read(path, data)
    assert indices == [0, 1, 2]
    values = results.record().values
    assert values.n == 3
    assert (values.top1, values.top5) == pytest.approx((100 / 3, 200 / 3))
    assert results.record().engine["name"] == "external"
    assert results.label(bird) == SYNSETS[bird]


def write_text(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "result.txt"
    path.write_text(text)
    return path


GOOD = relay_lines(
    "x/n00000000/ILSVRC2012_val_00000000.JPEG", [0, 1, 2, 3, 4]
) + relay_lines("x/n00000001/ILSVRC2012_val_00000001.JPEG", [0, 1, 2, 3, 4])
BAD = [
    ("", "is empty"),
    ("hello\n", "line 1 is 'hello'"),
    (GOOD + GOOD, "2 times: the tool appends"),
    (
        "".join(line + "\n" for line in GOOD.splitlines() for _ in range(2)),
        "times|is not the next best class",
    ),
    (
        GOOD.rsplit("\n", 2)[0] + "\n",
        "has 4 lines for x/n00000001.*so it is incomplete",
    ),
    (GOOD.replace("00000001.JPEG", "00000007.JPEG"), "has no image of that name"),
    (GOOD.replace("n00000001", "n00000002"), "has no image of that name and class"),
    (GOOD.replace("id: 4", "id: 1000"), "ids up to 1000.*classes.tsv"),
    (GOOD.replace("id: 4", "id: 3"), "is not the next best class"),
    (GOOD.replace("top-2", "top-3"), "is not the next best class"),
    (
        GOOD.replace("0.80000000", "0.95000000"),
        "is not the next best class of .* best first",
    ),
    (GOOD.replace("0.80000000", "nan"), "not finite"),
    (
        GOOD.replace("name: 1", "name: 9", 1),
        "calls the class 1 '1'; a line above calls it '9'",
    ),
    (
        GOOD.replace("name: 1\n", "name: n00000005\n"),
        "which is class 5 in the order of imagenet/val",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_damaged_text_is_refused_in_one_sentence(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        outputs.read(write_text(tmp_path, text), imagenet([0, 1]))
    assert len(outputs.read(write_text(tmp_path, GOOD), imagenet([0, 1]))[1]) == 2


def test_some_imagenet_classes_do_not_define_the_meaning_of_an_id(
    tmp_path: Path,
) -> None:
    data = Dataset(
        "some",
        SYNSETS[:10],
        ("n00000000/ILSVRC2012_val_00000000.JPEG",),
        (0,),
        refuse_to_load,
    )
    with pytest.raises(
        InputError,
        match=r"their order does not say what an id means; put a classes.tsv",
    ):
        outputs.read(
            write_text(
                tmp_path, relay_lines("x/ILSVRC2012_val_00000000.JPEG", [0, 1, 2, 3, 4])
            ),
            data,
        )


def test_images_of_the_same_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    data = Dataset(
        "d",
        ("a", "b", "c"),
        ("a/1.jpg", "b/1.jpg", "c/2.jpg"),
        (0, 1, 2),
        refuse_to_load,
    )
    results, indices = outputs.read(
        write_text(
            tmp_path,
            relay_lines("/x/b/1.jpg", [1, 0, 2]) + relay_lines("/y/2.jpg", [0, 1, 2]),
        ),
        data,
    )
    assert (indices, results.targets.tolist(), results.correct.tolist()) == (
        [1, 2],
        [1, 2],
        [True, False],
    )
    with pytest.raises(InputError, match="2 images of that name"):
        outputs.read(write_text(tmp_path, relay_lines("/x/1.jpg", [1, 0, 2])), data)
    assert list(outputs.coverage_remarks(data, indices))
    assert not list(outputs.coverage_remarks(data, [0, 1, 2]))


# A folder of arrays


def arrays(
    folder: Path, rows: Sequence[npt.NDArray[np.floating]], name: str = "{:06d}"
) -> Path:
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        np.savez(folder / f"{name.format(number)}.npz", output_0=row)
    return folder


@pytest.fixture
def two_images() -> Dataset:
    return Dataset("d", ("a", "b", "c"), ("a/x.jpg", "b/y.jpg"), (0, 1), refuse_to_load)


ROWS = [np.array([[0, 2, 1]], np.float32), np.array([[0, 2, 1]], np.float32)]


def test_arrays_are_matched_by_name_or_by_the_order_of_the_datalist(
    two_images: Dataset, tmp_path: Path
) -> None:
    listed = tmp_path / "npz.txt"
    listed.write_text("/in/b/y.jpg.npz\n/in/a/x.npz\n")
    rows: list[npt.NDArray[np.floating]] = [
        np.array([[0, 2, 1]], np.float32),
        np.array([[3, 2, 1]], np.float16),
    ]
    results, _ = outputs.read(arrays(tmp_path / "numbered", rows), two_images, listed)
    assert results.top.tolist() == [[0, 1, 2], [1, 2, 0]]
    assert results.correct.all()
    named = tmp_path / "named"
    named.mkdir()
    np.savez(named / "x.npz", output_0=rows[1])
    np.savez(named / "y.jpg.npz", output_0=rows[0])
    for datalist in (listed, None):
        assert outputs.read(named, two_images, datalist)[0].correct.all()


def test_file_names_without_leading_zeros_are_refused(tmp_path: Path) -> None:
    data = Dataset(
        "d",
        ("a", "b"),
        tuple(f"a/{i}.jpg" for i in range(11)),
        (0,) * 11,
        refuse_to_load,
    )
    listed = tmp_path / "npz.txt"
    listed.write_text("".join(f"/in/a/{i}.npz\n" for i in range(11)))
    rows = [np.zeros((1, 2), np.float32)] * 11
    with pytest.raises(InputError, match="leading zeros"):
        outputs.read(arrays(tmp_path / "out", rows, "out_{}"), data, listed)
    assert (
        len(
            outputs.read(arrays(tmp_path / "padded", rows, "out_{:02d}"), data, listed)[
                1
            ]
        )
        == 11
    )


def test_a_datalist_of_another_length_is_refused(
    two_images: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "npz.txt").write_text("/in/a/x.npz\n")
    with pytest.raises(InputError, match=r"names 1 images, but .* holds 2 .npz files"):
        outputs.read(arrays(tmp_path / "out", ROWS), two_images, tmp_path / "npz.txt")


def zip_bomb(claimed: int) -> bytes:
    """A zip entry whose header says that it unpacks to `claimed` bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("output_0.npy", b"\0" * 1000)
    return out.getvalue().replace(
        (1000).to_bytes(4, "little"), claimed.to_bytes(4, "little")
    )


def npz(value: npt.NDArray[np.generic], name: str = "output_0") -> bytes:
    out, array = io.BytesIO(), io.BytesIO()
    np.save(array, value)
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{name}.npy", array.getvalue())
    return out.getvalue()


def array_with_a_false_size() -> bytes:
    """An array header that asks for a terabyte."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        text, {"descr": "<f4", "fortran_order": False, "shape": (1, 2**38)}
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("output_0.npy", text.getvalue())
    return out.getvalue()


BAD_ARRAYS = [
    (b"no archive", "not a readable .npz"),
    (npz(ROWS[0])[:-30], "not a readable .npz"),
    (npz(ROWS[0], "other"), "holds no output_0"),
    (npz(np.array([{"a": 1}], object)), "output_0 is object"),
    (npz(np.array(["x", "y", "z"])), "expected numbers"),
    (npz(np.zeros((2, 3))), "has the shape"),
    (
        npz(np.zeros((1, 4))),
        "holds 4 outputs, but .* holds 3; all must be of one model",
    ),
    (npz(np.array([[0, np.nan, 1]])), "not finite"),
    (zip_bomb(2**30), "has 1,073,741,824 bytes; at most"),
    (array_with_a_false_size(), "in 0 bytes; expected numbers"),
]


@pytest.mark.parametrize(("content", "message"), BAD_ARRAYS)
def test_a_damaged_array_is_refused_in_one_sentence(
    content: bytes, message: str, two_images: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "npz.txt").write_text("/in/a/x.npz\n/in/b/y.npz\n")
    out = arrays(tmp_path / "out", ROWS)
    (out / "000001.npz").write_bytes(content)
    with pytest.raises(InputError, match=message):
        outputs.read(out, two_images, tmp_path / "npz.txt")


# Beside our own run


def test_our_own_predictions_in_the_vendors_format_give_the_same_figures(
    trained: Artifact, digits_folder: Path, tmp_path: Path
) -> None:
    data = folder.read(digits_folder).held_out()
    own = accuracy.evaluate(
        [accuracy.open_run(trained, engine("onnxruntime"))], data, ReadReport()
    )[0]
    board = tmp_path / "result.txt"
    order = np.random.default_rng(0).permutation(len(own.keys))
    board.write_text(
        "".join(
            relay_lines(f"/board/{own.keys[i]}", own.top[i].tolist(), str)
            for i in order
        )
    )
    results, indices = outputs.read(board, data, model=trained)
    assert indices == list(range(len(data)))
    record = accuracy.compare(own, results)
    assert (
        record.values.drop,
        record.samples["flips"],
        record.values.same_prediction,
    ) == (
        0,
        [],
        100,
    )
    assert results.record().values == own.record().values
    selected = outputs.select_images(results, own.keys[3:50])
    assert selected.keys == own.keys[3:50]
    assert np.array_equal(selected.top, own.top[3:50])
    assert re.fullmatch("[0-9a-f]{64}", selected.data["sha256"])


# CSV


@pytest.fixture
def birds() -> Dataset:
    keys = ("crane/1.jpg", "grey heron/2.jpg", "stork/3.jpg")
    classes = ("crane", "grey heron", "stork")
    return Dataset("birds", classes, keys, (0, 1, 2), refuse_to_load)


CSV_TEXTS = [
    "1.jpg,crane\n2.jpg,crane\n3.jpg,stork\n",
    "path,class\nx/3.jpg,2\nx/1.jpg,0\nx/2.jpg,0\n",
    "file;label\n1.jpg;crane\n2.jpg;Crane\n3.jpg;stork\n",
    "1.jpg,crane,0.9\n2.jpg,Grey_Heron,0.1\n2.jpg,crane,0.5\n1.jpg,stork,.1\n3.jpg,stork,1\n3.jpg,crane,0\n",
]


@pytest.mark.parametrize("text", CSV_TEXTS)
def test_a_csv_of_paths_and_classes_is_read(
    text: str, birds: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "result.csv"
    path.write_text(text)
    results, indices = outputs.read(path, birds)
    assert indices == [0, 1, 2]
    assert results.top[:, 0].tolist() == [0, 0, 2]
    assert results.record().values.top1 == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg,owl\n", "gives the class 'owl', which is neither the index"),
        ("1.jpg,7\n", "gives ids up to 7, and birds has 3 classes"),
        ("1.jpg,crane,much\n", "line 1 gives the score 'much'"),
        ("1.jpg,crane,nan\n", "line 1 gives the score 'nan'"),
        ("1.jpg,crane\n1.jpg,crane\n", "line 2 gives 1.jpg the class 'crane' twice"),
        (
            "1.jpg,crane\n2.jpg,crane,1,2\n",
            "line 1 is '1.jpg,crane'; expected path,class",
        ),
        (f"1.jpg,{'9' * 5000}\n", "which is neither the index of an output"),
        (f"1.jpg,crane\n2.jpg,{'x' * 200_000}\n", "is not a CSV: field larger"),
        ("1.jpg,\n", "gives the class '', which is neither"),
        ("4.jpg,crane\n", "has a result for 4.jpg, but birds has no image"),
        ("1.jpg\n", "expected 'PATH: Relay.*or a CSV with path,class"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused_in_one_sentence(
    text: str, message: str, birds: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "result.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        outputs.read(path, birds)


def test_numbers_that_are_names_and_indices_need_a_header(tmp_path: Path) -> None:
    keys = ("1/a.jpg", "2/b.jpg", "0/c.jpg")
    data = Dataset("d", ("1", "2", "0"), keys, (0, 1, 2), refuse_to_load, True)
    path = tmp_path / "result.csv"
    rows = "a.jpg,1\nb.jpg,2\nc.jpg,0\n"
    path.write_text(rows)
    with pytest.raises(InputError, match="begin the file with the line path,name or"):
        outputs.read(path, data)
    for header, top1 in (("path,name", 100), ("path,index", 0)):
        path.write_text(f"{header}\n{rows}")
        assert outputs.read(path, data)[0].record().values.top1 == top1
