"""The core without its extras, in fresh interpreters where importing them fails."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import repzoo

SOURCE = Path(repzoo.__file__).parent
NEEDS_EXTRAS = {
    "repzoo.zoo.families",
    "repzoo.zoo.checkpoints",
    "repzoo.training.distill",
    "repzoo.training.training_images",
    "repzoo.training.loop",
    "repzoo.training.models",
    "repzoo.training.state",
    "repzoo.training.distributed",
    "repzoo.training.run",
    "repzoo.torch",
    "repzoo.torch.fold",
    "repzoo.torch.from_onnx",
    "repzoo.torch.layers",
    "repzoo.torch.operators",
    "repzoo.torch.to_ir",
    "repzoo.torch.trace",
    "repzoo.torch.windows",
    "repzoo.engines.pytorch",
    "repzoo.engines.openvino",
    "repzoo.engines.mnn",
    "repzoo.quant.baselines.nncf",
    "repzoo.quant.parameters.finetune",
}
BLOCKED = (
    "torch",
    "torchvision",
    "timm",
    "sklearn",
    "safetensors",
    "openvino",
    "MNN",
    "_tools",
    "nncf",
)
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def modules() -> list[str]:
    names = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in sorted(SOURCE.rglob("*.py"))
    ]
    return [
        name.removesuffix(".__init__")
        for name in names
        if not name.endswith("__main__")
    ]


def run_without_extras(
    code: str, *arguments: object
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", BLOCK + code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False
    )


def test_every_module_of_the_core_imports() -> None:
    core = [name for name in modules() if name not in NEEDS_EXTRAS]
    assert len(core) > 25
    ran = run_without_extras(
        f"import importlib, json\nfor name in {core!r}: importlib.import_module(name)\nprint(json.dumps(sorted(sys.modules)))"
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert not {name.split(".")[0] for name in json.loads(ran.stdout)} & set(BLOCKED)


def test_the_blocker_blocks() -> None:
    ran = run_without_extras("import torch")
    assert ran.returncode == 1
    assert "No module named 'torch'" in ran.stderr


MAIN = "from repzoo.cli import main; main()"


def test_a_board_can_look_count_predict_and_evaluate(
    model_file: Path, digits_folder: Path
) -> None:
    image = next((digits_folder / "7").iterdir())
    commands: list[list[object]] = [
        ["list"],
        ["count", model_file],
        ["predict", model_file, image],
        ["evaluate", model_file, "--data", digits_folder],
    ]
    for command in commands:
        ran = run_without_extras(MAIN, *command, "--json")
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["export", "repghostnet_050", "-o", "{out}"], "torch"),
        (["train", "repghostnet_050", "--data", "{data}", "-o", "{out}"], "torch"),
        (
            [
                "quantize",
                "{model}",
                "--data",
                "{data}",
                "--finetune-epochs",
                "1",
                "-o",
                "{out}",
            ],
            "torch",
        ),
        (["evaluate", "{model}", "--data", "digits"], "demo"),
        (["card", "-o", "{out}"], "demo"),
    ],
)
def test_what_needs_an_extra_says_what_to_type(
    command: list[str],
    extra: str,
    model_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    ran = run_without_extras(
        MAIN,
        *[
            part.format(out=tmp_path / "out", data=digits_folder, model=model_file)
            for part in command
        ],
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("repzoo: ")
    assert ran.stderr.endswith(f"type: pip install 'repzoo[{extra}]'\n")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_prints_outside_the_command_line() -> None:
    for path in SOURCE.rglob("*.py"):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call)
        ]
        names = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
        assert "print" not in names, path


def test_the_package_is_typed_and_carries_its_data() -> None:
    for name in (
        "py.typed",
        "zoo/catalog.toml",
        "training/recipes.toml",
        "report/words.toml",
    ):
        assert (SOURCE / name).is_file()
