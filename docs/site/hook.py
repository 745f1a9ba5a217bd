"""What MkDocs calls while it builds the site: the reference, the tutorials, and links."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from docs.site import links, reference, tutorials  # noqa: E402


def on_files(files: Files, *, config: Any) -> Files:
    """Add the documents beside docs/, and a page for each notebook."""
    for path, content in tutorials.pages().items():
        files.append(File.generated(config, path, content=content))
    for source, path in links.ROOT_PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        page = File.generated(config, path, content=links.for_site(text, source))
        files.append(page)
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """The text of a page: of the reference from the code, of others with the site's links."""
    path = page.file.src_uri
    if path in reference.PAGES:
        return reference.PAGES[path]()
    # Those that `on_files` adds have the site's links already.
    if path in links.ROOT_PAGES.values() or path.startswith(tutorials.FOLDER):
        return markdown
    # The mark that tests/test_snippets.py reads; to MkDocs such a line starts no code block.
    text = markdown.replace("\n```python no-run\n", "\n```python\n")
    return links.for_site(text, "docs/" + path)


def on_post_page(output: str, *, page: Page, **_: Any) -> str:
    """The language of Chinese pages, which browsers and screen readers go by."""
    if page.file.src_uri.endswith("_cn.md"):
        return output.replace('<html lang="en"', '<html lang="zh-Hans"', 1)
    return output
