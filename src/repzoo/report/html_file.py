"""What the HTML files of repzoo share: each is one file, and it asks for nothing from a network.

Names, labels and reasons are of others. They stand in a file as JSON only, in which no "<" is
left, and its scripts show them as text. A Content-Security-Policy admits these scripts by their
hashes, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from repzoo.storage import json_text

LANGUAGES = ("en", "zh")


def render(template: str, **values: Any) -> str:
    """The template of that name with `values`, which are escaped where it does not say `safe`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("repzoo.report"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)


def read_template(name: str) -> str:
    """The text of a file beside the templates."""
    return (files("repzoo.report") / "templates" / name).read_text("utf-8")


def policy(scripts: Sequence[str], **sources: str) -> str:
    """A Content-Security-Policy that admits `scripts`, and no network.

    scripts  texts of the script elements
    sources  what else is admitted, by directive: `img_src="data:"`; of `script_src`, more than
             the hashes of `scripts`
    """
    admitted = [source_hash(text) for text in scripts]
    more = sources.pop("script_src", "")
    rules = [
        "default-src 'none'",
        f"script-src {' '.join([*admitted, more])}".rstrip(),
    ]
    for name, source in sources.items():
        rules.append(f"{name.replace('_', '-')} {source}")
    rules += ["base-uri 'none'", "form-action 'none'"]
    return "; ".join(rules)


def source_hash(text: str) -> str:
    """The source expression of a policy that admits the element with this text (CSP level 2)."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def json_element(data: Mapping[str, Any]) -> str:
    """`data` as JSON that cannot end the element that it stands in (HTML, 4.12.1.3)."""
    text = json_text(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def inline_script(script: str) -> str:
    """`script` as it may stand in HTML, where these two would be read as markup."""
    return script.replace("</script", "<\\/script").replace("<!--", "\\x3C!--")
