"""Reading pickles as data: what acts is refused and not run, what costs is refused before it
costs, what is data is read to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import copyreg
import json
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import PROCESS_SECONDS, Run
from tests.zoo import hostile

from repzoo.errors import InputError
from repzoo.zoo.containers import read
from repzoo.zoo.pickle_allowlist import Array, Opaque, Refused
from repzoo.zoo.unpickle import unpickle


@pytest.fixture
def extension() -> Iterator[None]:
    hostile.register_extension()
    yield
    copyreg.remove_extension("os", "system", 42)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("ending", ["pth", "pdparams"])
@pytest.mark.parametrize("name", hostile.ACTING)
def test_what_acts_is_refused_and_does_not(
    tmp_path: Path, run: Run, name: str, ending: str
) -> None:
    """Through the real command line; then Python's own unpickler shows that the trap was armed."""
    mark, path, out = (
        tmp_path / "ran",
        tmp_path / f"w.{ending}",
        tmp_path / "out.safetensors",
    )
    path.write_bytes(hostile.ACTING[name](mark))
    ran = run("convert", path, "--model", "repghostnet_050", "-o", out)
    assert (ran.code, ran.out, out.exists(), mark.exists()) == (2, "", False, False)
    assert len(ran.err.splitlines()) == 1
    assert str(path) in ran.err
    assert "refused" in ran.err
    with contextlib.suppress(
        Exception
    ):  # what it does after it has acted does not matter
        pickle.loads(path.read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("name", hostile.ACTING)
def test_what_acts_is_refused_in_torchs_zip_form_too(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pth"
    path.write_bytes(hostile.archive(hostile.ACTING[name](mark)))
    with pytest.raises(InputError, match="refused"):
        read(path)
    assert not mark.exists()


def test_the_installed_command_refuses_and_does_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pth"
    path.write_bytes(hostile.archive(hostile.ACTING["eval"](mark)))
    arguments = [
        "convert",
        str(path),
        "--model",
        "repvgg_a0",
        "-o",
        str(tmp_path / "o.safetensors"),
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "repzoo", *arguments],
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
    )
    assert (ran.returncode, ran.stdout, mark.exists()) == (2, "", False)
    assert "Traceback" not in ran.stderr
    assert "'builtins.eval'" in ran.stderr


@pytest.mark.parametrize("name", hostile.COSTLY)
def test_what_costs_or_lies_is_refused_cheaply(tmp_path: Path, name: str) -> None:
    content, sentence = hostile.COSTLY[name]
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=sentence):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(content) + 2**24


def test_endless_steps_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repzoo.zoo.unpickle.MAX_STEPS", 1000)
    data = hostile.whole_pickle(b"N0" * 600 + b"N")
    with pytest.raises(Refused, match="more than 1,000 steps"):
        unpickle(BytesIO(data), len(data))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"\n <html><body>404</body></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"BZh91AY", "bunzip2"),
        (b"\xfd7zXZ\x00", "unxz"),
        (b"", "is empty"),
        (b"hello", "does not begin like a supported checkpoint"),
        (b"PK\x03\x04", "damaged or truncated"),
        (b"\0" * 257 + b"ustar" + b"\0" * 250, "tar archive"),
        (b"\xff" * 300, "does not begin like a supported checkpoint"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.pdparams"])
def test_other_kinds_of_files_are_named_in_the_message(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path / name)


def round_trip(value: Any, protocol: int) -> Any:
    data = pickle.dumps(value, protocol)
    return unpickle(BytesIO(data), len(data))


@pytest.mark.parametrize("protocol", range(6))
def test_data_comes_back_as_it_was(protocol: int) -> None:
    value = {
        "a": [1, -2, 2**40, 1.5, None, True, False, "text", "Ä\n'\\", b"\x00\xff"],
        "b": (1, (2, (3, 4, 5, 6))),
        3: {},
        "c": [],
    }
    assert round_trip(value, protocol) == value
    assert round_trip(OrderedDict(a=1, b=OrderedDict()), protocol) == {"a": 1, "b": {}}
    assert round_trip(Counter("aab"), protocol) == {"a": 2, "b": 1}
    assert round_trip(defaultdict(list, {"a": [1]}), protocol) == {"a": [1]}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f2", "f8", "i8", ">i2", "u1", "?"])
def test_arrays_come_back_to_the_bit(protocol: int, dtype: str) -> None:
    random = np.random.default_rng(0)
    for shape in ((), (0,), (3,), (2, 3, 4)):
        for order in ("C", "F"):
            array = np.array(random.integers(0, 2, shape), dtype, order=order)
            restored = round_trip({"w": array}, protocol)["w"]
            assert isinstance(restored, Array)
            assert restored.value is not None
            assert restored.value.dtype == array.dtype
            np.testing.assert_array_equal(restored.value, array)


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_of_numpy_become_pythons(protocol: int) -> None:
    assert round_trip({"best": np.float64(71.5), "epoch": np.int64(3)}, protocol) == {
        "best": 71.5,
        "epoch": 3,
    }


def test_settings_of_training_are_left_empty() -> None:
    for value in (
        argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=1)),
        Path("runs/x"),
        {1, 2},
    ):
        restored = round_trip({"args": value}, 4)["args"]
        assert restored == [1, 2] or isinstance(restored, Opaque)
    assert round_trip({"args": argparse.Namespace(lr=0.1)}, 2)["args"] == Opaque(
        "argparse.Namespace"
    )


def test_paddles_tensor_is_matched_not_evaluated() -> None:
    array = hostile.array()
    data = pickle.dumps({"w": hostile.Calls(eval, "data", {"data": array})}, 4)
    restored = unpickle(BytesIO(data), len(data))["w"]
    np.testing.assert_array_equal(restored.value, array)


def test_a_name_that_only_resembles_an_allowed_one_is_refused() -> None:
    for module, name in (("numpy.core", "multiarray._reconstruct"), ("torch", "_utils._rebuild_tensor_v2"), ("builtins", "tuple.__new__"),
                         ("torch", "load"), ("torch", "os"), ("torch", "FloatStorage.from_file"), ("argparse", "FileType"),
                         ("omegaconf", "os.system"), ("numpy", "load"), ("collections", "namedtuple")):  # fmt: skip
        data = hostile.whole_pickle(hostile.text(module) + hostile.text(name) + b"\x93")
        with pytest.raises(Refused, match=r"no data|storage of type"):
            unpickle(BytesIO(data), len(data))


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps({"state_dict": hostile.weights()}, 4)
    path = tmp_path / "w.pdparams"
    for end in range(1, len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(InputError):
            read(path)


def test_random_changes_never_end_in_another_error(tmp_path: Path) -> None:
    """500 files with one to four bytes changed: read, or refused with a sentence."""
    random, path = np.random.default_rng(0), tmp_path / "w.pdparams"
    honest = pickle.dumps({"state_dict": hostile.weights(step=np.int64(3))}, 4)
    refused = 0
    for _ in range(500):
        data = bytearray(honest)
        for place in random.integers(0, len(data), random.integers(1, 5)):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            read(path)
        except InputError as error:
            refused += 1
            json.dumps(str(error))
    assert refused > 100
