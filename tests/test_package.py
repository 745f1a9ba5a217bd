"""The core without its extras, in fresh interpreters where importing them fails."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import PROCESS_SECONDS

import repzoo
from repzoo.errors import MissingExtra

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
    "repzoo.torch.inplace",
    "repzoo.torch.layers",
    "repzoo.torch.movement",
    "repzoo.torch.norms",
    "repzoo.torch.prepare",
    "repzoo.torch.to_artifact",
    "repzoo.training.holdout",
    "repzoo.training.threads",
    "repzoo.torch.operators",
    "repzoo.torch.to_ir",
    "repzoo.torch.trace",
    "repzoo.torch.windows",
    "repzoo.engines.pytorch",
    "repzoo.engines.openvino",
    "repzoo.engines.mnn",
    "repzoo.quant.baselines.nncf",
    "repzoo.quant.parameters.fake_quantization",
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
        command, capture_output=True, text=True, timeout=PROCESS_SECONDS, check=False
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


# Runs several command lines in one process, for importing takes most of the time.
RUN_ALL = """
import contextlib, io, json
from repzoo.cli import main
results = []
for command in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(command)
        except SystemExit as ended:
            code = ended.code or 0
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def run_commands(*commands: list[object]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each command line, without the extras."""
    arguments = [[str(argument) for argument in command] for command in commands]
    ran = run_without_extras(RUN_ALL, json.dumps(arguments))
    assert ran.returncode == 0, ran.stderr
    return [(code, out, err) for code, out, err in json.loads(ran.stdout)]


def test_a_board_can_look_count_predict_and_evaluate(
    model_file: Path, digits_folder: Path
) -> None:
    image = next((digits_folder / "7").iterdir())
    results = run_commands(
        ["list", "--json"],
        ["count", model_file, "--json"],
        ["predict", model_file, image, "--json"],
        ["evaluate", model_file, "--data", digits_folder, "--json"],
    )
    for code, out, err in results:
        assert code == 0, err
        assert json.loads(out)


def test_what_needs_an_extra_says_what_to_type(
    model_file: Path, digits_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finetune = ["--data", digits_folder, "--finetune-epochs", 1, "-o", out]
    commands: list[tuple[str, list[object]]] = [
        ("torch", ["export", "repghostnet_050", "-o", out]),
        ("torch", ["train", "repghostnet_050", "--data", digits_folder, "-o", out]),
        ("torch", ["quantize", model_file, *finetune]),
        ("demo", ["evaluate", model_file, "--data", "digits"]),
        ("demo", ["card", "-o", out]),
    ]
    results = run_commands(*(command for _, command in commands))
    for (extra, _), (code, output, error) in zip(commands, results, strict=True):
        assert (code, output) == (2, ""), error
        # Above it may stand what the data were taken for.
        sentence = error.splitlines()[-1]
        assert sentence.startswith("repzoo: ")
        assert sentence.endswith(f"pip install 'repzoo[{extra}]'")
    assert list(tmp_path.iterdir()) == []


def test_nothing_prints_outside_the_command_line() -> None:
    board = SOURCE / "packs" / "board"  # programs that packs carry to a board
    for path in SOURCE.rglob("*.py"):
        if path.is_relative_to(board):
            continue
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


@pytest.mark.parametrize("command", ["--help", "engines", "list"])
def test_what_answers_at_once_imports_nothing_slow(command: str) -> None:
    """onnx-ir imports SymPy, which takes longer than all else that these commands need."""
    code = f"""if True:
        import contextlib, sys
        from repzoo.cli import main
        with contextlib.suppress(SystemExit):
            main([{command!r}])
        slow = {{"onnx_ir", "sympy", "torch", "timm"}} & set(sys.modules)
        sys.exit(f"imported: {{sorted(slow)}}" if slow else 0)
    """
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PROCESS_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_the_pip_of_this_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / ".venv" / "bin"
    other = tmp_path / "bin"
    for folder in (own, other):
        folder.mkdir(parents=True)
        (folder / "pip").touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(own / "python"))
    monkeypatch.chdir(tmp_path)
    for path, advice in ((other, ".venv/bin/pip"), (own, "pip")):
        monkeypatch.setenv("PATH", str(path))
        assert str(MissingExtra("x", "page")).endswith(
            f"type: {advice} install 'repzoo[page]'"
        )
    (own / "pip").unlink()
    assert f"{own}/python -m pip install" in str(MissingExtra("x", "page"))
