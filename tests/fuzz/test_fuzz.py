"""Damaged input of every kind ends in a result or in one sentence, never in a traceback.

The changes keep the structure of a file: an ONNX message that parses, an image with a valid
header, JSON with other values. `make test` draws the same few examples on every run, `make fuzz`
many random ones. Every exception that reaches the command line and is not repzoo's own fails.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.fuzz import onnx_mutations

from repzoo import cli
from repzoo.errors import InputError
from repzoo.measure import record
from repzoo.quant.network.scheme import load_scheme
from repzoo.training.recipe import recipe

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "fuzz"
# Times as many examples in a round of `make fuzz`. A round ends: with forty times as many, the
# changed ONNX files alone ran into the time limit of a test.
LONG = 4
EXIT_CODES = (0, 2, 3, 4)

BASES = onnx_mutations.base_models()
DRAWN = st.randoms(use_true_random=False)


def budget(examples: int) -> Callable[[Any], Any]:
    """So many examples in `make test`, LONG times as many in each round of `make fuzz`."""
    return settings(
        max_examples=examples * (LONG if IS_LONG else 1),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def require_answer(*arguments: object) -> None:
    """Run the command line on `arguments`: it must end with a document or a sentence."""
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        ended = stack.enter_context(pytest.raises(SystemExit))
        cli.main([str(argument) for argument in arguments])
    code = ended.value.code or 0
    assert code in EXIT_CODES, (code, err.getvalue())
    if code == 0:
        json.loads(out.getvalue(), parse_constant=_refuse_constant)
        return
    assert out.getvalue() == ""
    *_, sentence = err.getvalue().splitlines()
    assert sentence.startswith("repzoo: ") or "Usage:" in err.getvalue()


def _refuse_constant(text: str) -> NoReturn:
    raise AssertionError(f"{text} is no JSON")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with six small images."""
    root = tmp_path_factory.mktemp("fuzz")
    for index in range(6):
        path = root / "data" / "abc"[index % onnx_mutations.CLASSES] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "model.onnx").write_bytes(BASES["plain"].SerializeToString())
    return root


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# --- ONNX files -----------------------------------------------------------------------------------


def commands(model: Path, data: Path, output: Path) -> dict[str, Sequence[object]]:
    """One quick run of every command that reads a model."""
    image = data / "a" / "0.png"
    return {
        "info": (model,),
        "count": (model,),
        "fold": (model, "-o", output),
        "evaluate": (model, "--data", data),
        "predict": (model, image),
        "bench": (model, "--seconds", 0.01),
        "embed-input": (model, "--input", "uint8", "-o", output),
    }


@pytest.mark.parametrize("name", BASES)
def test_the_models_that_are_changed_are_valid(name: str) -> None:
    with scratch() as place:
        path = place / "m.onnx"
        path.write_bytes(BASES[name].SerializeToString())
        require_answer("fold", path, "-o", place / "out.onnx", "--json")
        assert (place / "out.onnx").exists() or name == "qdq"


@budget(120)
@given(random=DRAWN)
def test_changed_onnx_files(folder: Path, random: Random) -> None:
    model = BASES[random.choice(sorted(BASES))]
    with scratch() as place:
        path = place / "m.onnx"
        path.write_bytes(
            onnx_mutations.mutate(model, random, changes=random.randint(1, 3))
        )
        runs = commands(path, folder / "data", place / "out.onnx")
        command = random.choice(sorted(runs))
        require_answer(command, *runs[command], "--json")


SCHEMES = ("ort-cpu", "ort-cpu-7bit", "per-tensor", "mnn", "rdk-x5", "vastai")


# Quantizing takes ten times as long as anything else, so it has a test and a budget of its own.
@budget(4)
@given(random=DRAWN)
def test_quantizing_changed_onnx_files(folder: Path, random: Random) -> None:
    model = BASES[random.choice(sorted(BASES))]
    options: list[object] = ["--images", random.choice((1, 4, 99)), "--search", 0]
    options += ["--scheme", random.choice(SCHEMES)]
    options += ["--placement", random.choice(("fastest", "layers", "everything"))]
    if random.random() < 0.5:
        options.append("--force")
    with scratch() as place:
        path = place / "m.onnx"
        changes = random.randint(0, 2)
        path.write_bytes(onnx_mutations.mutate(model, random, changes))
        output = place / "out.onnx"
        data = folder / "data"
        require_answer(
            "quantize", path, "--data", data, "-o", output, *options, "--json"
        )
        leftovers = {item.name for item in place.iterdir()} - {"m.onnx", "out.onnx"}
        assert not leftovers


# --- images and folders ---------------------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "TGA", "ICO")
NAMES = (
    "a",
    "b",
    "c",
    "0",
    "10",
    "train",
    "val",
    "test",
    ".hidden",
    "with space",
    "-x",
    "[red]",
    "a|b",
    "line\nbreak",
    "\x1b[31m",
    "猫",
    "classes.tsv",
    "metadata.csv",
    "metadata.jsonl",
    "_classes.csv",
    "x.jpg",
)


def changed_image(random: Random) -> bytes:
    """An image file of any format and mode, with some bytes changed, cut or repeated."""
    mode = random.choice(("RGB", "L", "1", "P", "RGBA", "CMYK", "I;16", "F"))
    file = io.BytesIO()
    size = (random.choice((1, 2, 19, 40)), random.choice((1, 3, 40)))
    image = Image.new(mode, size)
    try:
        image.save(file, random.choice(FORMATS))
    except (OSError, ValueError):  # a format that does not have this mode
        image.convert("RGB").save(file, "PNG")
    data = bytearray(file.getvalue())
    for _ in range(random.randrange(4)):
        data[random.randrange(min(len(data), 120))] = random.choice((0, 1, 255, 128))
    if random.random() < 0.2:
        del data[random.randrange(len(data)) :]
    return bytes(data)


@budget(40)
@given(random=DRAWN)
def test_changed_images(folder: Path, random: Random) -> None:
    with scratch() as place:
        path = place / random.choice(("i.png", "i.jpg", "i.jpeg", "i.webp", "i.tif"))
        path.write_bytes(changed_image(random))
        require_answer("predict", folder / "model.onnx", path, "--json")


@budget(25)
@given(random=DRAWN)
def test_folders_of_any_layout(folder: Path, random: Random) -> None:
    good = (folder / "data" / "a" / "0.png").read_bytes()
    with scratch() as place:
        root = place / "data"
        root.mkdir()
        for _ in range(random.randrange(9)):
            depth = random.randint(1, 4)
            path = root.joinpath(*(random.choice(NAMES) for _ in range(depth)))
            with contextlib.suppress(OSError):  # a file is where a folder should be
                path.parent.mkdir(parents=True, exist_ok=True)
                is_good = random.random() < 0.7
                path.with_name(
                    path.name + random.choice(("", ".png", ".txt"))
                ).write_bytes(good if is_good else changed_image(random))
        require_answer("evaluate", folder / "model.onnx", "--data", root, "--json")


# --- checkpoints ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same small state in every container."""
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("checkpoints")
    state = {"conv_stem.weight": torch.ones(2, 3), "bn1.running_mean": torch.ones(2)}
    torch.save({"state_dict": state}, root / "zip.pth")
    torch.save(state, root / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, root / "safe.safetensors")
    return sorted(root.iterdir())


@budget(25)
@given(random=DRAWN)
def test_changed_checkpoints(checkpoints: list[Path], random: Random) -> None:
    source = random.choice(checkpoints)
    with scratch() as place:
        path = place / source.name
        if source.name == "zip.pth" and random.random() < 0.7:
            _rewrite_archive(source, path, random)
        else:
            path.write_bytes(_changed_bytes(source.read_bytes(), random))
        output = place / "out.safetensors"
        require_answer(
            "convert", path, "--model", "repghostnet_050", "-o", output, "--json"
        )


def _rewrite_archive(source: Path, target: Path, random: Random) -> None:
    """Change one member of a zip archive, whose checksums stay right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        members = old.namelist()
        chosen = random.choice(members)
        for name in members:
            data = old.read(name)
            if name == chosen:
                data = _changed_bytes(data, random)
                name = random.choice((name, name, name, "x/data.pkl", "../x", "/"))
            new.writestr(name, data)


def _changed_bytes(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    if random.random() < 0.2:
        del changed[random.randrange(len(changed) + 1) :]
    return bytes(changed)


# --- JSON and TOML --------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**70,
    1e400,
    float("nan"),
    "",
    "x",
    "\ud800",
    [],
    [0],
    [[0, 0]],
    {},
    {"a": 1},
)


def changed_value(value: Any, random: Random) -> Any:
    """`value` with one part at any depth replaced, removed or added."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(sorted(value))
        kept = {name: item for name, item in value.items() if name != key}
        if random.random() < 0.2:
            return kept
        return {**kept, key: changed_value(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        items = list(value)
        place = random.randrange(len(items))
        items[place] = changed_value(items[place], random)
        return items
    return random.choice(VALUES)


def changed_lines(data: bytes, random: Random) -> bytes:
    """A JSON-lines file with one line changed, dropped, repeated or cut."""
    lines = data.splitlines(keepends=True)
    place = random.randrange(len(lines))
    kind = random.randrange(5)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, lines[random.randrange(len(lines))])
    elif kind == 2:
        lines[place] = lines[place][: random.randrange(len(lines[place]))]
    else:
        value = changed_value(json.loads(lines[place]), random)
        lines[place] = json.dumps(value).encode() + b"\n"
    return b"".join(lines)


@pytest.fixture(scope="module")
def journal(folder: Path) -> Path:
    path = folder / "journal.jsonl"
    model = folder / "model.onnx"
    require_answer(
        "evaluate", model, "--data", folder / "data", "--resume", path, "--json"
    )
    return path


@budget(30)
@given(random=DRAWN)
def test_changed_journals(folder: Path, journal: Path, random: Random) -> None:
    with scratch() as place:
        path = place / "journal.jsonl"
        path.write_bytes(changed_lines(journal.read_bytes(), random))
        require_answer(
            "evaluate",
            folder / "model.onnx",
            "--data",
            folder / "data",
            "--resume",
            path,
            "--json",
        )


@pytest.fixture(scope="module")
def records(folder: Path) -> Path:
    path = folder / "records.jsonl"
    model = folder / "model.onnx"
    require_answer(
        "evaluate", model, model, "--data", folder / "data", "--append", path, "--json"
    )
    require_answer("bench", model, "--seconds", 0.01, "--append", path, "--json")
    return path


@budget(100)
@given(random=DRAWN)
def test_changed_records(records: Path, random: Random) -> None:
    with scratch() as place:
        path = place / "records.jsonl"
        path.write_bytes(changed_lines(records.read_bytes(), random))
        with contextlib.suppress(InputError):
            record.read(path)


SCHEME_KEYS = ("about", "weight_bits", "per_channel", "escape", "quantized", "ranges")
RECIPE_KEYS = ("epochs", "lr", "batch", "optimizer", "mixup", "per_model", "distill")
TOML_VALUES = (
    "1",
    "-1",
    "7",
    "8",
    "1e400",
    "nan",
    "true",
    "''",
    "'x'",
    "[]",
    "['Conv']",
    "[[1]]",
    "{}",
    "{ repvgg_a0 = { lr = 'x' } }",
    "1979-05-27",
    "0x",
    "'\x00'",
)


@budget(100)
@given(random=DRAWN)
def test_toml_of_any_content(random: Random) -> None:
    keys = random.choice((SCHEME_KEYS, RECIPE_KEYS))
    lines = [random.choice(("[mine]", "[a.b]", "[", "", "[[x]]"))]
    for _ in range(random.randrange(5)):
        lines.append(f"{random.choice(keys)} = {random.choice(TOML_VALUES)}")
    with scratch() as place:
        path = place / "mine.toml"
        path.write_text("\n".join(lines))
        for load in (load_scheme, recipe):
            with contextlib.suppress(InputError):
                load(str(path))
