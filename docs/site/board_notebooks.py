"""The tutorials of boards: one notebook a target, from the same cells and boards.toml.

`python -m docs.site.board_notebooks` writes them without outputs; `make tutorials` then runs them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from docs.site.notebooks import FOLDER, MACHINE, Cell, Notebook, clean, read

from repzoo.storage import write_atomically

BOARDS = FOLDER / "boards"
TEXTS = Path(__file__).with_name("boards.toml")
TUTORIALS = "https://github.com/repzoo/repzoo/blob/main/docs/tutorials/"

TITLE = """# {board}: the pack

{intro}

This notebook writes the pack and shows what is in it. Take your own model and images instead of
those used here.

To run it: `pip install -c constraints.txt '.[demo]'` in a checkout of repzoo, and put
[block.onnx](../block.onnx) beside the notebook. [Folding a new block]({tutorials}new-block.ipynb)
makes that file."""
PACK = """import repzoo

folded = repzoo.fold("block.onnx")
pack = repzoo.pack(folded, "digits", "pack", target="{target}", calibration=20, images=64)
pack"""
PREDICTED = """\
The second row is a prediction: repzoo computes on this PC in the number formats of the target.
Nothing has run on a board yet. 20 and 64 images are few, so that this is quick: leave the two
numbers out for your own model."""
SHOWN = """def read(name):
    return (pack.folder / name).read_text()


def between(name, start, end):
    return start + read(name).partition(start)[2].partition(end)[0].rstrip()


print({show})"""
CHANGE = """right = "{old}"
wrong = "{new}"
file = pack.folder / "{file}"
file.write_text(file.read_text().replace(right, wrong))
repzoo.check_pack(pack.folder, data="digits")"""
CHECKED = """\
`repzoo pack --check pack --data digits` does the same on the command line, for files of your own
as well. Each finding says what to write instead. With images it also says what the mistake costs.
Write the pack again before you go on."""
STEPS = """for step in sorted(pack.folder.glob("[0-9]*.sh")):
    print(step.name, "-", step.read_text().splitlines()[1].removeprefix("# "))"""
RUN_QDQ = 'repzoo.evaluate(pack.folder / "block.onnx", "digits", against=folded)'


def texts() -> Mapping[str, Mapping[str, str]]:
    """What boards.toml says, by target."""
    return tomllib.loads(TEXTS.read_text("utf-8"))


def notebook(target: str, text: Mapping[str, str]) -> Notebook:
    """The notebook of one target, without outputs."""
    made = nbformat.v4.new_notebook(cells=list(_cells(target, text)))
    clean(made)
    return made


def sources(made: Notebook) -> list[str]:
    """The text of each cell."""
    return [cell.source for cell in made.cells]


def _cells(target: str, text: Mapping[str, str]) -> Iterator[Cell]:
    intro = text["intro"].strip()
    yield _text(TITLE.format(board=text["board"], intro=intro, tutorials=TUTORIALS))
    yield _text("## 1. Write the pack")
    yield _code(PACK.format(target=target), MACHINE)
    yield _text(PREDICTED)
    yield _text(f"## 2. What the tool is told\n\n{text['told'].strip()}")
    yield _code(SHOWN.format(show=text["show"]))
    if "mistake" in text:
        yield _text(
            "## 3. Check what you change\n\nSuppose that you edit a file by hand. "
            + text["mistake"]
        )
        yield _code(CHANGE.format_map(text), MACHINE)
        yield _text(CHECKED)
    else:
        yield _text(
            "## 3. Run the file here\n\nIt is in INT8 already, so any engine runs it. "
            "Image by image against float, in ONNX Runtime:"
        )
        yield _code(RUN_QDQ, MACHINE)
    yield _text(
        "## 4. The steps\n\nEach is a script in the folder, to be run in order."
    )
    yield _code(STEPS)
    yield _text(text["run"].strip())


def _text(source: str) -> Cell:
    return nbformat.v4.new_markdown_cell(source)


def _code(source: str, *tags: str) -> Cell:
    metadata: dict[str, Any] = {"tags": list(tags)} if tags else {}
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def main() -> None:
    """Write the notebooks of all targets whose cells have changed."""
    for target, text in texts().items():
        path = BOARDS / f"{target}.ipynb"
        made = notebook(target, text)
        # The outputs of the others stay.
        if not path.exists() or sources(read(path)) != sources(made):
            write_atomically(path, nbformat.writes(made) + "\n")


if __name__ == "__main__":
    main()
