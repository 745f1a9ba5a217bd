"""Every Python block of the README and the documents runs as it stands.

The blocks of a document run in order in one namespace, in a folder with `my.onnx` (a classifier of
224x224 images into three classes, in training form, without metadata), `photos/<class>/*.jpg` and
`cat.jpg`. A block whose fence is "```python no-run" is only compiled.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.conftest import Photograph

from repzoo.measure import sweep

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^```python(?P<mark>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
CLASSES = ("bird", "cat", "dog")
IMAGES_PER_CLASS = 16
QUICKSTART = """
```python
import repzoo
model  = repzoo.load("my.onnx", size=224)
folded = repzoo.fold(model)
int8   = repzoo.quantize(folded, "photos/", max_drop=0.5)
int8.save("int8.onnx")
repzoo.evaluate(int8, "photos/", against=folded).drop
repzoo.benchmark([folded, int8], engine="openvino").ratios
int8.predict("cat.jpg", top=5)
```
"""

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
classifier (float[N,3,224,224] image) => (float[N,3] logits) {
    c1 = Conv <kernel_shape = [3, 3], strides = [4, 4], pads = [1, 1, 1, 1]> (image, w1)
    b1 = BatchNormalization (c1, gamma, beta, mean, variance)
    r1 = Relu (b1)
    c2 = Conv <kernel_shape = [3, 3], strides = [4, 4], pads = [1, 1, 1, 1]> (r1, w2)
    r2 = Relu (c2)
    pooled = GlobalAveragePool (r2)
    flat = Flatten (pooled)
    logits = Gemm (flat, w3, b3)
}
"""


def blocks(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, mark after "python", code) of every Python block of a Markdown text."""
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        yield line, match["mark"].strip(), match["code"]


def documents() -> list[Path]:
    """Those with a Python block, but the Chinese ones, which have the blocks of the English."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    english = [path for path in paths if not path.stem.endswith("_cn")]
    return [path for path in english if any(blocks(path.read_text("utf-8")))]


def chinese_documents() -> list[Path]:
    """The Chinese documents; each has an English one beside it."""
    return [ROOT / "README_cn.md", *sorted((ROOT / "docs").rglob("*_cn.md"))]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, photograph: Photograph) -> Path:
    """The files that snippets read."""
    folder = tmp_path_factory.mktemp("snippets")
    random = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "w2": (16, 8, 3, 3), "w3": (16, 3), "b3": (3,)}
    weights = {}
    for name, shape in shapes.items():
        weights[name] = 0.3 * random.standard_normal(shape)
    for name in ("gamma", "beta", "mean", "variance"):
        weights[name] = random.uniform(0.5, 1.5, 8)
    model = onnx.parser.parse_model(NETWORK)
    for name, values in weights.items():
        tensor = numpy_helper.from_array(values.astype(np.float32), name)
        model.graph.initializer.append(tensor)
    onnx.save(model, folder / "my.onnx")
    for index, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            image = photograph(260, 240, index * IMAGES_PER_CLASS + number)
            image.save(folder / "photos" / name / f"{number:02}.jpg")
    photograph(300, 280, 99).save(folder / "cat.jpg")
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the snippets, a copy of `template`. Timings are short in it."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    time_fully = sweep.run

    def time_briefly(
        models: Any, engines: Any, settings: Any, _: float, *rest: Any
    ) -> Any:
        return time_fully(models, engines, settings, 0.1, *rest)

    monkeypatch.setattr(sweep, "run", time_briefly)
    return tmp_path


def run_blocks(text: str, name: str) -> int:
    """Run the Python blocks of a Markdown text in order; returns how many ran."""
    namespace: dict[str, object] = {"__name__": "snippet"}
    count = 0
    for line, mark, code in blocks(text):
        # Blank lines in front keep the document's line numbers in tracebacks.
        compiled = compile("\n" * line + code, name, "exec")
        if mark != "no-run":
            exec(compiled, namespace)
            count += 1
    return count


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "path", documents(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_python_blocks_of_a_document_run(path: Path) -> None:
    run_blocks(path.read_text("utf-8"), str(path.relative_to(ROOT)))


def test_the_quickstart_runs_as_it_is_written(folder: Path) -> None:
    pytest.importorskip("openvino", reason="the openvino extra is not installed")
    assert run_blocks(QUICKSTART, "quickstart") == 1
    assert (folder / "int8.onnx").is_file()


def test_a_block_marked_no_run_is_compiled_only() -> None:
    assert run_blocks("```python no-run\nraise SystemExit\n```\n", "document") == 0
    with pytest.raises(SyntaxError):
        run_blocks("```python no-run\nraise (\n```\n", "document")


def python_of(path: Path) -> list[str]:
    """The Python blocks of a document, without comments and layout."""
    codes = [code for _, _, code in blocks(path.read_text("utf-8"))]
    return [ast.unparse(ast.parse(code)) for code in codes]


def test_the_readme_has_python() -> None:
    assert python_of(ROOT / "README.md")


@pytest.mark.parametrize(
    "path", chinese_documents(), ids=lambda path: str(path.relative_to(ROOT))
)
def test_a_chinese_document_has_the_python_of_the_english(path: Path) -> None:
    english = path.with_name(path.name.replace("_cn.md", ".md"))
    assert python_of(path) == python_of(english)
