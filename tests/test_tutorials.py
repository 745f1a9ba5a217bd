"""The tutorials run, and print what is kept in them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from docs.site import board_notebooks, links, notebooks

from repzoo.packs.pack import TARGETS

ROOT = Path(__file__).parents[1]
PATHS = notebooks.paths()
MAX_BYTES = 50_000  # of a notebook with its outputs
EXTRAS = ("torch", "timm", "sklearn", "vl_convert")


def name_of(path: Path) -> str:
    return str(path.relative_to(notebooks.FOLDER))


@pytest.fixture(scope="session")
def kernel() -> Iterator[notebooks.Kernel]:
    for extra in EXTRAS:
        pytest.importorskip(extra, reason="the tutorials need every extra")
    with notebooks.kernel() as running:
        yield running


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_tutorial_prints_what_is_kept_in_it(
    path: Path, kernel: notebooks.Kernel
) -> None:
    committed = notebooks.read(path)
    running = notebooks.read(path)
    kernel.run(running)
    assert notebooks.comparable(running) == notebooks.comparable(committed), (
        f"run: make tutorials NOTEBOOKS={path.relative_to(ROOT)}"
    )


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_a_tutorial_is_small_and_says_nothing_of_the_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    notebook = notebooks.read(path)
    nbformat.validate(notebook)
    assert len(text.encode()) < MAX_BYTES
    assert not re.search(r"/(?:home|root|tmp|work|site-packages)/", text)
    assert platform.node() not in text or len(platform.node()) < 4
    cleaned = notebooks.read(path)
    notebooks.clean(cleaned)
    assert cleaned == notebook, "run: make tutorials"
    for cell in notebook.cells:
        if notebooks.TIMING in notebooks.tags_of(cell):
            assert not cell.outputs


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_each_link_of_a_tutorial_leads_to_a_file(path: Path) -> None:
    source = path.relative_to(ROOT).as_posix()
    for cell in notebooks.read(path).cells:
        if cell.cell_type != "markdown":
            continue
        for target in links.targets(cell.source):
            inside = links.in_repository(target, source)
            assert inside is None or (ROOT / inside).is_file(), target


def test_each_board_has_the_notebook_that_its_texts_make() -> None:
    texts = board_notebooks.texts()
    assert set(texts) == {name.partition(":")[0] for name in TARGETS.names()}
    for target, text in texts.items():
        kept = notebooks.read(notebooks.FOLDER / "boards" / f"{target}.ipynb")
        made = board_notebooks.notebook(target, text)
        assert board_notebooks.sources(kept) == board_notebooks.sources(made)


# --- what is kept of outputs ----------------------------------------------------------


def cell_with(*outputs: nbformat.NotebookNode, tags: str = "") -> nbformat.NotebookNode:
    metadata = {"tags": tags.split()}
    return nbformat.v4.new_code_cell("", outputs=list(outputs), metadata=metadata)


def stream(text: str, name: str = "stdout") -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", text=text, name=name)


def test_paths_and_lines_of_one_machine_are_left_out() -> None:
    text = "/tmp/x/my.onnx written\nINT8 takes 0.8 times as long as float\nno VNNI here\nend\n"
    (output,) = notebooks.kept(cell_with(stream(text)), "/tmp/x")
    assert output["text"] == "my.onnx written\nend\n"


def test_a_stream_is_one_output_however_it_came() -> None:
    (output,) = notebooks.kept(cell_with(stream("a\n"), stream("b\n")), "/x")
    assert output["text"] == "a\nb\n"


def test_timings_are_not_kept_and_warnings_are_refused() -> None:
    assert notebooks.kept(cell_with(stream("3 ms"), tags="timing"), "/x") == []
    with pytest.raises(ValueError, match="wrote to stderr: careful"):
        notebooks.kept(cell_with(stream("careful", "stderr")), "/x")


def test_html_is_kept_without_the_repr_beside_it() -> None:
    data = {"text/html": "<p>1</p>", "text/plain": f"Record(host={os.sep}secret)"}
    shown = nbformat.v4.new_output("execute_result", data)
    (output,) = notebooks.kept(cell_with(shown), "/x")
    assert output["data"] == {"text/html": "<p>1</p>"}


@pytest.mark.parametrize(
    ("tags", "other", "is_same"),
    [
        ("", "Top-1  9.6 %", False),
        ("machine", "Top-1 10.61 %", True),
        ("machine", "Top-1 −1e-06 %", True),
        ("machine", "Top-5  9.5 %", True),
        ("machine", "Top-1  9.5 points", False),
        ("search", "tried gptq", True),
    ],
)
def test_numbers_of_a_machine_are_not_compared_but_words_are(
    tags: str, other: str, is_same: bool
) -> None:
    compared = []
    for text in ("Top-1  9.5 %", other):
        notebook = nbformat.v4.new_notebook(cells=[cell_with(stream(text), tags=tags)])
        compared.append(notebooks.comparable(notebook))
    assert (compared[0] == compared[1]) is is_same
