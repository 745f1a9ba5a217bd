"""Links between the documents, as they work on GitHub and as they work in the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

REPOSITORY = "https://github.com/repzoo/repzoo/blob/main/"
_ALIASES = (
    "https://github.com/repzoo/repzoo/tree/main/",
    "https://raw.githubusercontent.com/repzoo/repzoo/main/",
)
# Documents beside docs/ that are pages of the site.
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
NOTEBOOK = ".ipynb"
_FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s]+)(?=\))")


def targets(text: str) -> Iterator[str]:
    """The targets of all links and images of a Markdown text, outside of code blocks."""
    for match in _LINK.finditer(_FENCE.sub("", text)):
        yield match["target"]


def in_repository(target: str, source: str) -> str | None:
    """The path in the repository that a link of the document `source` leads to.

    None for an address elsewhere, and for an anchor of the document itself.
    """
    address = target.partition("#")[0]
    for start in (REPOSITORY, *_ALIASES):
        if address.startswith(start):
            return address.removeprefix(start)
    if not address or "://" in address or address.startswith("mailto:"):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), address))


def _page(path: str) -> str:
    """The page of the document `path`, below the root of the site."""
    return ROOT_PAGES.get(path, path.removeprefix("docs/"))


def _page_of_notebook(path: str, source: str) -> str:
    """The page that shows a notebook, where a link from another document leads to one."""
    is_linked = path.endswith(NOTEBOOK) and path != source
    return path.removesuffix(NOTEBOOK) + ".md" if is_linked else path


def for_site(text: str, source: str) -> str:
    """`text` of the document `source` (path in the repository) with links as the site needs them.

    Files that are no pages are on GitHub. Pages are linked relatively, also where the text names
    them by their address on GitHub: the site works offline.
    """
    folder = posixpath.dirname(_page(source)) or "."

    def adapt(match: re.Match[str]) -> str:
        """The target of one link."""
        target, mark, anchor = match["target"].partition("#")
        if target.startswith(REPOSITORY):
            path = target.removeprefix(REPOSITORY)
        elif not target or "://" in target or target.startswith("mailto:"):
            return match["target"]
        else:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path not in ROOT_PAGES and not path.startswith("docs/"):
            return REPOSITORY + path + mark + anchor
        page = _page(_page_of_notebook(path, source))
        return posixpath.relpath(page, folder) + mark + anchor

    return _LINK.sub(adapt, text)
