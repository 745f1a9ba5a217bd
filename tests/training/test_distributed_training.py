"""Two real processes through torchrun's environment train as one does; a batch in parts trains
as a whole one does.
"""

from __future__ import annotations

import json
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("timm", reason="the torch extra is not installed")

import torch
from safetensors.torch import load_file
from tests.conftest import Run
from tests.forked import Ended, Task, as_torchrun, free_port, run_groups
from tests.training.test_loop import (
    MODEL,
    PREPROCESS,
    SHORT,
    network,
    pictures,
    trainer,
)

from repzoo.errors import InputError
from repzoo.measure import distributed
from repzoo.training import state
from repzoo.training.loop import Trainer
from repzoo.training.options import Running
from repzoo.training.training_images import TrainingImages

RECIPE = """
about = "for tests"
epochs = 2
batch = 8
optimizer = "sgd"
lr = 0.01
preprocess = { size = 32, crop_fraction = 1.0 }
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 6 held-out images of two classes; the recipe quick.toml lies beside."""
    root = tmp_path_factory.mktemp("distributed")
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("validation", 3)):
        for index, name in enumerate("ab"):
            folder = root / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                low = 100 * index
                pixels = random.integers(low, low + 100, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (root / "quick.toml").write_text(RECIPE)
    return root / "data"


def command(data: Path, output: Path, *more: object) -> list[str]:
    """The arguments of `repzoo` for a short training."""
    recipe = data.parent / "quick.toml"
    options = [
        "--data",
        data,
        "-o",
        output,
        "--recipe",
        recipe,
        "--workers",
        0,
        "--threads",
        1,
        "--json",
    ]
    return ["train", MODEL, *map(str, options), *map(str, more)]


# Trains `train_still`, and then a model by the command line.
TWICE = """
import os, pathlib, sys
from repzoo import cli
from tests.training.test_distributed_training import train_still
train_still(pathlib.Path(sys.argv[1]))
os.environ['MASTER_PORT'] = sys.argv[2]
cli.main(sys.argv[3:])
"""

# Ends itself as the system would end it, after the second step of the second epoch.
KILLED = """
import os, signal, sys
from repzoo import cli
from repzoo.training import state

saves, save = [], state.save

def save_and_die(folder, values):
    save(folder, values)
    saves.append(values)
    if len(saves) == 5:
        os.kill(os.getpid(), signal.SIGKILL)

state.save = save_and_die
cli.main(sys.argv[1:])
"""

SAVE_OFTEN = ("--epochs", 2, "--save-minutes", 1e-9, "--device", "cpu")


@dataclass(frozen=True)
class Processes:
    """What two processes did together and what one did that was killed; their folder."""

    pair: list[Ended]
    killed: Ended
    folder: Path


@pytest.fixture(scope="module")
def processes(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """All processes at once, because importing torch and timm takes most of the time."""
    folder = tmp_path_factory.mktemp("processes")
    arguments = command(data, folder / "cli", "--epochs", 1, "--batch", 24)
    twice = Task([str(folder / "still"), str(free_port()), *arguments], TWICE)
    killed = Task(command(data, folder / "broken", *SAVE_OFTEN), KILLED)
    modules = ["torch.distributed", "torch.onnx", "timm", "repzoo.training.run"]
    modules += ["repzoo.verbs", "tests.training.test_distributed_training"]
    ended = run_groups([as_torchrun([twice] * 2), [killed]], modules, folder)
    return Processes(ended[0], ended[1][0], folder)


def test_two_processes_train_as_one(
    data: Path, processes: Processes, run: Run, tmp_path: Path
) -> None:
    """The same images in one batch, and the statistics of both: what differs is the order of
    sums in float32.

    The loss comes of some 20 layers, each with a relative rounding error of eps = 1.2e-7 times
    the root of its fan-in (at most 30): 20 * 30 * eps = 7e-5.
    """
    first, second = processes.pair
    assert (first.code, second.code) == (0, 0), first.err + second.err
    single = run(
        *command(data, tmp_path / "one", "--epochs", 1, "--batch", 24)
    ).document
    assert second.out == ""  # only the first prints a result
    document = json.loads(first.out)
    assert document["epochs"][0]["loss"] == pytest.approx(
        single["epochs"][0]["loss"], rel=2e-4
    )
    weights = [
        load_file(path / state.WEIGHTS)
        for path in (tmp_path / "one", processes.folder / "cli")
    ]
    assert weights[0].keys() == weights[1].keys()
    settings = json.loads((processes.folder / "cli" / state.SETTINGS).read_text())
    assert settings["processes"] == 2


STILL = SHORT.changed(
    mixup=0.0, cutmix=0.0, drop_rate=0.0, optimizer="sgd"
)  # mixing and dropout draw for each process


def still_network() -> torch.nn.Sequential:
    without_dropout = network()
    without_dropout[5] = torch.nn.Identity()
    return without_dropout


def train_still(output: Path) -> None:
    with distributed.join_group() as group:
        Trainer(
            still_network(),
            TrainingImages(pictures(24), PREPROCESS),
            STILL,
            Running(output=output, workers=0, threads=1),
            group,
        ).run(None)


def test_gradients_of_many_steps_are_those_of_one_process(
    processes: Processes, tmp_path: Path
) -> None:
    """Six steps of SGD: what the weights moved by is the sum of the gradients, of batch
    statistics over both processes too.

    A sum in another order errs by some eps of each addend; six steps through three layers stay
    below 1e-5 of the largest weight.
    """
    train_still(tmp_path)
    single, two = (
        torch.load(folder / state.STATE, weights_only=True)["module"]
        for folder in (tmp_path, processes.folder / "still")
    )
    before = still_network().state_dict()
    moved: dict[str, float] = {}
    for key, value in single.items():
        atol = 1e-5 * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(two[key], value, rtol=0, atol=atol, msg=key)
        if value.is_floating_point():
            moved[key] = float((value - before[key]).abs().max())
    trained = ("0.weight", "1.weight", "1.bias", "6.weight", "6.bias", "1.running_var")
    assert min(moved[key] for key in trained) > 1e-3


def test_killed_it_goes_on_to_the_very_same_weights(
    data: Path, processes: Processes, run: Run, tmp_path: Path
) -> None:
    """SIGKILL within the second epoch of three steps, where each step is saved."""
    straight, broken = tmp_path / "straight", processes.folder / "broken"
    assert processes.killed.code == -signal.SIGKILL, processes.killed.err
    assert not (broken / state.WEIGHTS).exists()
    # One thread here too: more of them add in another order.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for folder in (straight, broken):
            assert run(*command(data, folder, *SAVE_OFTEN)).code == 0
    finally:
        torch.set_num_threads(threads)
    weights = [(folder / state.WEIGHTS).read_bytes() for folder in (straight, broken)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("at", [(1, 1), (1, 2), (2, 1)])
def test_a_state_from_within_an_epoch_is_exact(
    tmp_path: Path, at: tuple[int, int]
) -> None:
    class Killed(BaseException):
        pass

    def progress(stage: str, done: int, total: int) -> None:  # noqa: ARG001
        steps = (at[0] - 1) * 3 + at[1] + 1  # of three in an epoch
        if stage == "training (images)" and done == 8 * steps:
            raise Killed

    trainer(tmp_path / "straight").run(None)
    with pytest.raises(Killed):
        trainer(tmp_path / "broken", save_minutes=1e-9).run(None, progress)
    kept = torch.load(tmp_path / "broken" / state.STATE, weights_only=True)
    assert (len(kept["log"]), kept["step"]) == (at[0] - 1, at[1])
    trainer(tmp_path / "broken", module=network(9)).run(None)
    assert (tmp_path / "broken" / state.WEIGHTS).read_bytes() == (
        tmp_path / "straight" / state.WEIGHTS
    ).read_bytes()


def test_workers_change_nothing(tmp_path: Path) -> None:
    for workers in (0, 2):
        trainer(tmp_path / str(workers), workers=workers).run(None)
    assert (tmp_path / "0" / state.WEIGHTS).read_bytes() == (
        tmp_path / "2" / state.WEIGHTS
    ).read_bytes()


def test_a_batch_in_parts_is_the_batch(tmp_path: Path) -> None:
    """Without batch statistics and dropout the gradients are sums in another order: 6 steps of
    lr 0.02, each off by some eps.
    """

    def plain() -> torch.nn.Module:
        torch.manual_seed(1)
        nn = torch.nn
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )

    for parts in (1, 2, 4):
        trainer(
            tmp_path / str(parts), STILL, module=plain(), accumulate=parts, workers=0
        ).run(None)
    whole = load_file(tmp_path / "1" / state.WEIGHTS)
    for parts in (2, 4):
        weights = load_file(tmp_path / str(parts) / state.WEIGHTS)
        for key in whole:
            torch.testing.assert_close(weights[key], whole[key], rtol=1e-5, atol=1e-6)


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    """The size limit of files stands in for a disk without room: the write fails in the midst
    of the file.
    """
    trainer(tmp_path, SHORT.changed(epochs=1)).run(None)
    before = (tmp_path / state.STATE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(InputError, match="free room or give another"):
            state.save(tmp_path, {"module": network().state_dict()})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, signal_before)
    assert (tmp_path / state.STATE).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        state.STATE,
        state.LOG,
        state.WEIGHTS,
    }
