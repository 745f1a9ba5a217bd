"""The documents: links lead somewhere, the site has every page, the reference has every name."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from docs.site import links, markdown, reference

import repzoo
from repzoo import cli
from repzoo.measure.record import RESULT_KINDS

ROOT = Path(__file__).parents[1]
BESIDE = ("README.md", "README_cn.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def documents() -> list[str]:
    """Paths of all documents in the repository."""
    inside = sorted((ROOT / "docs").rglob("*.md"))
    return [*BESIDE, *[path.relative_to(ROOT).as_posix() for path in inside]]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The pages of the reference."""
    return {path: render() for path, render in reference.PAGES.items()}


# --- links and pages -----------------------------------------------------------------


@pytest.mark.parametrize("source", documents())
def test_every_link_and_image_of_a_document_leads_to_a_file(source: str) -> None:
    missing: list[str] = []
    for target in links.targets((ROOT / source).read_text("utf-8")):
        path = links.in_repository(target, source)
        if path is not None and not (ROOT / path).exists():
            missing.append(target)
    assert missing == []


def test_a_link_out_of_the_repository_is_none() -> None:
    assert links.in_repository("https://arxiv.org/abs/2101.03697", "README.md") is None
    assert links.in_repository("#results", "README.md") is None


def test_a_target_in_a_code_block_is_no_link() -> None:
    text = "[a](b.md)\n```\n[c](d.md)\n```\n![e](f.svg)\n"
    assert list(links.targets(text)) == ["b.md", "f.svg"]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("docs/faq.md", "results.md#boards", "results.md#boards"),
        ("docs/guides/budget.md", "../faq.md", "../faq.md"),
        ("docs/extend.md", "../CONTRIBUTING.md", "contributing.md"),
        ("docs/guides/budget.md", "../../CHANGELOG.md#top", "../changelog.md#top"),
        ("CONTRIBUTING.md", "docs/packs.md", "packs.md"),
        ("CONTRIBUTING.md", links.REPOSITORY + "docs/faq.md", "faq.md"),
        ("docs/faq.md", "../src/repzoo/cli.py", links.REPOSITORY + "src/repzoo/cli.py"),
        ("docs/faq.md", "tutorials/a.ipynb", "tutorials/a.md"),
        ("docs/tutorials/a.ipynb", "a.ipynb", "a.ipynb"),
        ("docs/tutorials/a.ipynb", links.REPOSITORY + "docs/faq.md", "../faq.md"),
        ("docs/faq.md", "https://onnx.ai/", "https://onnx.ai/"),
        ("docs/faq.md", "#here", "#here"),
    ],
)
def test_links_as_the_site_needs_them(source: str, target: str, expected: str) -> None:
    assert links.for_site(f"[x]({target})", source) == f"[x]({expected})"


def navigation(entry: Any) -> list[str]:
    """The pages of the site's navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in navigation(value)]


def test_the_navigation_names_every_page_once() -> None:
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    inside = [path.removeprefix("docs/") for path in documents() if path[:5] == "docs/"]
    notebooks = []
    for path in (ROOT / "docs").rglob("*.ipynb"):
        notebooks.append(path.relative_to(ROOT / "docs").with_suffix(".md").as_posix())
    expected = [*inside, *notebooks, *links.ROOT_PAGES.values()]
    assert sorted(navigation(configuration["nav"])) == sorted(expected)


def test_each_guide_exists_in_both_languages_and_links_the_other() -> None:
    for path in (ROOT / "docs" / "guides").glob("*_cn.md"):
        english = path.with_name(path.name.replace("_cn.md", ".md"))
        assert f"]({english.name})" in path.read_text("utf-8")
        assert f"]({path.name})" in english.read_text("utf-8")
    names = {path.stem for path in (ROOT / "docs" / "guides").glob("*.md")}
    assert {name.removesuffix("_cn") + "_cn" for name in names} <= names


def command_lines(text: str) -> list[str]:
    """What follows `repzoo` in the code blocks of a document, without comments."""
    lines: list[str] = []
    for block in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        lines += re.findall(r"^(?:\$ )?repzoo ([a-z][^#\n|;]*)", block, re.MULTILINE)
    return lines


def flags_of(command: click.Command) -> set[str]:
    """The options of a command."""
    flags = {"--help", "--version"}
    for option in command.params:
        flags |= {*option.opts, *option.secondary_opts}
    return flags


@pytest.mark.parametrize("source", documents())
def test_commands_in_documents_exist_with_their_options(source: str) -> None:
    if source == "CHANGELOG.md":
        pytest.skip("it also tells of what is gone")
    context = click.Context(cli.cli)
    for line in command_lines((ROOT / source).read_text("utf-8")):
        command = cli.cli.get_command(context, line.split()[0])
        assert command is not None, line
        used = set(re.findall(r"(?<=\s)--[a-z][\w-]*", line))
        assert used <= flags_of(command), line


# --- the reference --------------------------------------------------------------------


def test_the_reference_has_every_command_and_option(pages: dict[str, str]) -> None:
    text = pages["reference/command-line.md"]
    context = click.Context(cli.cli)
    for name in cli.COMMANDS:
        command = cli.cli.get_command(context, name)
        assert command is not None
        section = text.partition(f"### repzoo {name}\n")[2].partition("\n### ")[0]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert f"`{option.opts[-1]}`" in section


def test_the_reference_has_every_public_name(pages: dict[str, str]) -> None:
    text = pages["reference/python.md"]
    for name in repzoo.__all__:
        if name not in ("torch", "__version__"):
            assert f"### repzoo.{name}\n" in text
    assert "### repzoo.torch.fold\n" in text
    assert "### repzoo.torch.export\n" in text
    assert "#### Artifact.save\n" in text


def test_the_reference_has_every_kind_of_record(pages: dict[str, str]) -> None:
    for kind in RESULT_KINDS.values():
        assert f"### kind: {kind}\n" in pages["reference/files.md"]


def test_every_row_of_a_table_in_the_reference_has_its_columns(
    pages: dict[str, str],
) -> None:
    bar = re.compile(r"(?<!\\)\|")
    for path, text in pages.items():
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            widths = {len(bar.findall(line)) for line in block.splitlines()}
            assert len(widths) == 1, f"{path}: {block[:200]}"


def test_a_docstring_as_markdown() -> None:
    text = (
        "Do it.\n\nmodel  the *float* model,\n       folded\nlow, high  of [0, 1]\n\n"
        "Raises:\n    InputError: no such\n        file.\n"
    )
    assert markdown.from_docstring(text) == (
        "Do it.\n\n- `model`: the \\*float\\* model, folded\n"
        "- `low, high`: of \\[0, 1\\]\n\n**Raises**\n\n- `InputError`: no such file."
    )


def test_markup_in_code_stays_as_it_is() -> None:
    assert markdown.escape("a<b `c<d|e` *") == "a&lt;b `c<d|e` \\*"
    assert markdown.table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"


# --- the site -------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None,
    reason="MkDocs is not installed; `make docs` installs it",
)
def test_the_site_builds_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run([*command, "--site-dir", str(tmp_path)], cwd=ROOT, check=True)
    fetched = re.compile(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?https?:")
    for page in tmp_path.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not fetched.search(text), page
        assert "```" not in text, f"{page}: a code block that MkDocs does not see"
