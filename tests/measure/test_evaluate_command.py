"""`repzoo evaluate` on results of boards, through the command line, and on ImageNet photographs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests import lite0

from repzoo.artifact import Artifact
from repzoo.data import folder
from repzoo.data.batches import ReadReport, batches
from repzoo.engines import engine
from repzoo.measure import accuracy, stats

Run = Callable[..., Any]


@dataclass(frozen=True)
class OwnRun:
    """Our own predictions for the digits: keys, targets and logits [n, 10]."""

    keys: tuple[str, ...]
    targets: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]

    @property
    def first(self) -> npt.NDArray[np.int64]:
        """Top-1 class, int [n]."""
        return np.asarray(self.logits.argmax(1))


@pytest.fixture(scope="module")
def own_run(trained: Artifact, digits_folder: Path) -> OwnRun:
    data = folder.read(digits_folder).held_out()
    session = engine("onnxruntime").open(trained.model, 1)
    read = [
        session.run(batch.inputs)
        for batch in batches(data, trained.require_preprocess(), 8, ReadReport())
    ]
    return OwnRun(data.keys, np.array(data.targets), np.concatenate(read))


def result_txt(path: Path, own: OwnRun, logits: npt.NDArray[np.float32]) -> Path:
    """As VastModelZOO's classification.py writes it: five lines an image, in no order."""
    lines = []
    for image in np.random.default_rng(1).permutation(len(own.keys)):
        shares = np.exp(logits[image] - logits[image].max())
        for rank, index in enumerate(np.argsort(-logits[image], kind="stable")[:5]):
            prob = shares[index] / shares.sum()
            lines.append(
                f"/data/a:b/{own.keys[image]}: Relay top-{rank} id: {index}, "
                f"prob: {prob:.8f}, class name: {index}"
            )
    path.write_text("\n".join(lines) + "\n")
    return path


def npz_folder(
    path: Path, own: OwnRun, logits: npt.NDArray[np.float32]
) -> tuple[Path, Path]:
    """(folder, datalist) as vamp writes them: files numbered in the order of the list."""
    path.mkdir()
    order = np.random.default_rng(2).permutation(len(own.keys))
    for number, image in enumerate(order):
        np.savez(path / f"output_{number:06d}.npz", output_0=logits[image][None])
    datalist = path.with_suffix(".txt")
    datalist.write_text(
        "".join(f"/npz/{own.keys[image].removesuffix('.png')}.npz\n" for image in order)
    )
    return path, datalist


def logits_with_mistakes(own: OwnRun, count: int) -> npt.NDArray[np.float32]:
    """The logits, with another class first in `count` of the correct images."""
    logits = own.logits.copy()
    for image in np.flatnonzero(own.first == own.targets)[:count]:
        logits[image, (own.targets[image] + 1) % 10] = logits[image].max() + 1
    return logits


@pytest.mark.parametrize("form", ["text", "arrays"])
def test_results_of_a_board_are_compared_with_our_own(
    form: str,
    own_run: OwnRun,
    run: Run,
    model_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    logits = logits_with_mistakes(own_run, 7)
    if form == "text":
        options: list[object] = [
            "--result",
            result_txt(tmp_path / "result.txt", own_run, logits),
        ]
    else:
        out, datalist = npz_folder(tmp_path / "out", own_run, logits)
        options = ["--result", out, "--datalist", datalist]
    records = tmp_path / "kept.jsonl"
    ran = run(
        "evaluate",
        model_file,
        "--data",
        digits_folder,
        *options,
        "--drop",
        1,
        "--append",
        records,
        "--json",
    )
    assert ran.code == 0, ran.err
    ours, board = ran.document["runs"]
    paired = ran.document["paired"]
    right = int((own_run.first == own_run.targets).sum())
    assert ours["top1"] == pytest.approx(100 * right / 200)
    assert board["top1"] == pytest.approx(100 * (right - 7) / 200)
    assert (
        paired["lost"],
        paired["gained"],
        paired["drop"],
        paired["needed_drop"],
    ) == (
        7,
        0,
        pytest.approx(3.5),
        1,
    )
    assert paired["p_value"] == pytest.approx(2 * 0.5**7)
    assert paired["needed"] == stats.pairs_needed(7 / 200, 0.01)
    assert len(paired["flips"]) == 7
    assert all(flip["second"] == (flip["target"] + 1) % 10 for flip in paired["flips"])
    assert [json.loads(line)["kind"] for line in records.read_text().splitlines()] == [
        "accuracy",
        "accuracy",
        "paired",
    ]


def test_results_of_a_board_need_no_model(
    own_run: OwnRun, run: Run, digits_folder: Path, tmp_path: Path
) -> None:
    text = result_txt(tmp_path / "result.txt", own_run, own_run.logits)
    ran = run("evaluate", "--data", digits_folder, "--result", text, "--json")
    assert ran.code == 0, ran.err
    (board,) = ran.document["runs"]
    assert board["top1"] == pytest.approx(
        100 * float((own_run.first == own_run.targets).mean())
    )
    shown = run("evaluate", "--data", digits_folder, "--result", text)
    assert shown.code == 0
    assert "result.txt" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def repeat(text: str) -> str:
    return text + text


def truncate(text: str) -> str:
    return text[: len(text) * 2 // 3]


def foreign(text: str) -> str:
    return text.replace(".png:", "_of_another_set.png:")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (repeat, "2 times: the tool appends"),
        (truncate, "expected 'PATH|so it is incomplete"),
        (foreign, "no image of that"),
    ],
)
def test_a_damaged_result_is_refused_in_one_sentence_and_nothing_is_appended(
    damage: Callable[[str], str],
    message: str,
    own_run: OwnRun,
    run: Run,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    text = result_txt(tmp_path / "result.txt", own_run, own_run.logits)
    text.write_text(damage(text.read_text()))
    ran = run(
        "evaluate",
        "--data",
        digits_folder,
        "--result",
        text,
        "--append",
        tmp_path / "kept.jsonl",
    )
    assert (ran.code, ran.out) == (2, "")
    described, sentence = ran.err.splitlines()
    assert described.startswith("data: ")
    assert any(part in sentence for part in message.split("|"))
    assert not (tmp_path / "kept.jsonl").exists()


BAD = [
    (["--result", "{here}/absent.txt"], "absent.txt"),
    (["--result", "{here}"], "holds no .npz file"),
    (
        ["--result", "{here}/result.txt", "--datalist", "{here}/result.txt"],
        "leave --datalist out",
    ),
    (["--result", "{here}/out", "--datalist", "{here}/absent.txt"], "absent.txt"),
    (
        ["--result", "{here}/out", "--datalist", "{here}/short.txt"],
        "names 1 images, but",
    ),
    (
        ["--result", "{here}/result.txt", "--append", "{here}/short.txt/kept.jsonl"],
        "short.txt",
    ),
    (["--result", "{here}/result.txt", "--append", "{here}/out"], "out"),
    ([], "give model files, or --result"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_a_bad_option_is_refused_in_one_sentence(
    options: list[str],
    message: str,
    own_run: OwnRun,
    run: Run,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    result_txt(tmp_path / "result.txt", own_run, own_run.logits)
    npz_folder(tmp_path / "out", own_run, own_run.logits)
    (tmp_path / "short.txt").write_text("/npz/0.npz\n")
    ran = run(
        "evaluate",
        "--data",
        digits_folder,
        *(part.format(here=tmp_path) for part in options),
    )
    assert (ran.code, ran.out) == (2, ""), ran
    *described, sentence = ran.err.splitlines()
    assert [line[:6] for line in described] in ([], ["data: "])
    assert message in sentence


@pytest.mark.parametrize("drop", ["0", "-1", "101", "nan", "much"])
def test_a_drop_that_no_number_of_images_could_show_is_refused(
    drop: str, run: Run, digits_folder: Path, tmp_path: Path
) -> None:
    ran = run("evaluate", "--data", digits_folder, "--result", tmp_path, "--drop", drop)
    assert (ran.code, ran.out) == (2, "")
    assert "Invalid value for '--drop'" in ran.err


CRANES = (
    134,
    517,
)  # the bird and the machine, one name in many lists of ImageNet's classes


def test_two_classes_of_one_name_are_told_apart_on_photographs() -> None:
    data = lite0.sample()
    near = [
        index
        for index, target in enumerate(data.targets)
        if target in {*CRANES, 130, 131, 132, 133, 135, 516, 518}
    ]
    model = lite0.artifact()
    run = accuracy.open_run(model, engine("onnxruntime"))
    (result,) = accuracy.evaluate([run], data.subset(near), ReadReport())
    rows = {row["index"]: row for row in result.by_class()}
    assert len(rows) == len(near) == 9
    assert all(rows[crane]["n"] == 1 for crane in CRANES)
    assert all(rows[crane]["top1"] == 100 for crane in CRANES)
    assert [rows[crane]["class"] for crane in CRANES] == ["n02012849", "n03126707"]


def test_labels_of_a_foreign_model_come_from_a_file(
    run: Run, foreign_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"digit {number}\n" for number in range(10)))
    preprocess = ["--size", 32, "--crop-fraction", 1, "--labels", labels]
    image = next(digits_folder.glob("3/*.png"))
    ran = run("predict", foreign_file, image, *preprocess, "--json")
    assert ran.code == 0, ran.err
    names = {row["class"] for row in ran.document["predictions"][0]["top"]}
    assert names <= {f"digit {number}" for number in range(10)}
    labels.write_text("one\ntwo\n")
    ran = run("predict", foreign_file, image, *preprocess)
    assert (ran.code, ran.out) == (2, "")
    assert "has 2 names for the 10 outputs of foreign" in ran.err


def test_without_labels_models_of_other_label_orders_are_not_compared(
    trained: Artifact, digits_folder: Path, tmp_path: Path, run: Run
) -> None:
    """Outputs would be compared by number. A label that stands twice does not matter."""
    images = next(digits_folder.rglob("*.png")).parent  # one folder: no labels
    labels = tuple("aabcdefghi")
    first = tmp_path / "first.onnx"
    second = tmp_path / "second.onnx"
    replace(trained, labels=labels).save(first)
    replace(trained, labels=labels[::-1]).save(second)
    refused = run("evaluate", second, "--data", images, "--against", first)
    assert refused.code == 2
    assert "same labels in different orders" in refused.err
    ran = run("evaluate", first, "--data", images, "--against", first, "--json")
    assert ran.code == 0
    assert ran.document["runs"][0]["top1"] == 100
