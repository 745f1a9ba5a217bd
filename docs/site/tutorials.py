"""The notebooks as pages of the site, with the outputs that are kept in them."""

from __future__ import annotations

from pathlib import Path

from docs.site import links
from nbconvert import MarkdownExporter

DOCS = Path(__file__).parents[1]
FOLDER = "tutorials/"


def pages() -> dict[str, str | bytes]:
    """The pages and their pictures, by path below the root of the site."""
    files: dict[str, str | bytes] = {}
    for path in sorted((DOCS / FOLDER).rglob("*.ipynb")):
        files.update(_page(path))
    return files


def _page(path: Path) -> dict[str, str | bytes]:
    """One notebook as Markdown, and its pictures."""
    relative = path.relative_to(DOCS).with_suffix(".md")
    # Pictures have numbers, so each notebook has a folder of its own.
    names = {"output_files_dir": path.stem}
    text, resources = MarkdownExporter().from_filename(str(path), names)
    source = path.relative_to(DOCS.parent).as_posix()
    page = links.for_site(_with_download(text, path.name), source)
    files: dict[str, str | bytes] = {relative.as_posix(): page}
    for name, content in resources["outputs"].items():
        files[(relative.parent / name).as_posix()] = content
    return files


def _with_download(text: str, name: str) -> str:
    """The text with a link to the notebook below its title."""
    title, _, rest = text.lstrip().partition("\n")
    return f"{title}\n\n[Download this notebook]({name})\n{rest}"
