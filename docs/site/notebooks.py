"""The tutorials: notebooks that are run, and what is kept of their outputs.

`make tutorials` runs them all and writes their outputs. The tests run them too, and compare.

A cell may have a tag:

timing   its figures are those of one machine at one moment: no output of it is kept
machine  its last digits depend on the processor: words are compared, numbers are not
search   what a search tries depends on the processor: that it prints anything is compared

A figure or a picture is compared by its kind alone, since fonts differ.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image
from traitlets.config import Config

from repzoo.storage import write_atomically

FOLDER = Path(__file__).parents[1] / "tutorials"
MODEL = FOLDER / "block.onnx"  # which new-block.ipynb trains and others read
TIMEOUT = 120  # seconds of a cell
COLORS = 32  # of a picture
# tqdm, which timm imports, asks for widgets that nothing here uses.
QUIET = "ignore:IProgress not found"
TIMING, MACHINE, SEARCH = "timing", "machine", "search"
# The best form of an output first. A text beside HTML is the whole `repr`, host and all.
KINDS = ("image/png", "text/html", "text/markdown", "text/plain")
# Lines that are printed on some machines only.
DEPENDENT = re.compile(r"times as long as|\bVNNI\b")
EQUAL_ROWS = re.compile(r"(<tr>(?:(?!<tr>).)*?</tr>)(?: \1)+")
NUMBER = re.compile(r"[+\N{MINUS SIGN}-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}

Notebook = Any
Cell = Any
Outputs = list[dict[str, Any]]


def paths() -> list[Path]:
    """All notebooks of the documentation."""
    return sorted(FOLDER.rglob("*.ipynb"))


def read(path: Path) -> Notebook:
    """The notebook in a file."""
    return nbformat.read(path, as_version=4)


class Kernel:
    """One process of Python for several notebooks, each in an empty namespace and folder.

    To start Python and to import torch takes longer than most notebooks do.
    """

    def __init__(self, client: NotebookClient) -> None:
        self._client = client

    def run(self, notebook: Notebook) -> None:
        """Run every cell of `notebook`, which then holds what is kept of the outputs.

        Raises:
            CellExecutionError: a cell raised an exception.
            ValueError: a cell wrote to stderr.
        """
        with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
            shutil.copy(MODEL, folder)
            self._execute(f"%reset -f\n%cd -q {folder}")
            self._client.nb = notebook
            for index, cell in enumerate(notebook.cells):
                if cell.cell_type == "code":
                    self._client.execute_cell(cell, index)
                    cell.outputs = kept(cell, folder)
            self._execute("%cd -q /")
        clean(notebook)

    def _execute(self, code: str) -> None:
        cell = nbformat.v4.new_code_cell(code)
        self._client.nb = nbformat.v4.new_notebook(cells=[cell])
        self._client.execute_cell(cell, 0)


@contextlib.contextmanager
def kernel() -> Iterator[Kernel]:
    """A kernel, until the block ends."""
    # Not TCP, which other users of the machine could read.
    config = Config({"KernelManager": {"transport": "ipc"}})
    empty = nbformat.v4.new_notebook()
    client = NotebookClient(
        empty, config=config, timeout=TIMEOUT, kernel_name="python3"
    )
    with client.setup_kernel(env={**os.environ, "PYTHONWARNINGS": QUIET}):
        yield Kernel(client)


def clean(notebook: Notebook) -> None:
    """Remove what differs from run to run, and what editors add."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.execution_count = None


def kept(cell: Cell, folder: str) -> Outputs:
    """What is kept of a cell's outputs; `folder` is where it ran."""
    if TIMING in tags_of(cell):
        return []
    outputs: Outputs = []
    for output in cell.outputs:
        if output.get("name") == "stderr":
            raise ValueError(f"a cell of a tutorial wrote to stderr: {output.text}")
        if output.output_type == "stream":
            text = _without_machine(output.text, folder)
            if outputs and outputs[-1].get("name") == "stdout":
                outputs[-1]["text"] += text
                continue
            outputs.append(nbformat.v4.new_output("stream", text=text))
            continue
        kind = next(kind for kind in KINDS if kind in output.data)
        data = output.data[kind]
        is_picture = kind == "image/png"
        data = _smaller(data) if is_picture else _without_machine(data, folder)
        outputs.append(nbformat.v4.new_output("display_data", {kind: data}))
    return outputs


def _smaller(png: str) -> str:
    """A picture of a few colors as a smaller file; both are base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    content = io.BytesIO()
    picture.quantize(COLORS).save(content, "PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _without_machine(text: str, folder: str) -> str:
    lines = text.splitlines(keepends=True)
    shown = [line for line in lines if not DEPENDENT.search(line)]
    return "".join(shown).replace(f"{folder}/", "")


def tags_of(cell: Cell) -> list[str]:
    """The tags of a cell."""
    tags: list[str] = cell.metadata.get("tags", [])
    return tags


def comparable(notebook: Notebook) -> list[list[str]]:
    """The outputs of each code cell, as far as they are the same on every machine."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tags = tags_of(cell)
            cells.append([_comparable(output, tags) for output in cell.outputs])
    return cells


def _comparable(output: Any, tags: list[str]) -> str:
    if output.output_type == "stream":
        text = output.text
    else:
        ((kind, text),) = output.data.items()
        if kind.startswith("image/"):
            return str(kind)
    if SEARCH in tags:
        return str(output.output_type)
    if MACHINE not in tags:
        return str(text)
    # Columns are as wide as their numbers.
    line = re.sub(r"\s+", " ", NUMBER.sub("#", text))
    # How many predictions change depends on the host's INT8 arithmetic, and so do rows of them.
    return EQUAL_ROWS.sub(r"\1", line)


def main() -> None:
    """Run notebooks and write their outputs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("notebooks", type=Path, nargs="*", default=paths())
    options = parser.parse_args()
    with kernel() as running:
        for path in options.notebooks:
            notebook = read(path)
            running.run(notebook)
            write_atomically(path, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    main()
