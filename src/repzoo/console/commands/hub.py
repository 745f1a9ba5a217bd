"""The command push: a model and its card to Hugging Face."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from repzoo import verbs
from repzoo.console.commands.shared import FILE, json_option
from repzoo.console.output import Console, View


@click.command()
@click.argument("source", type=FILE)
@click.argument("repository")
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="Upload nothing: write the repository's files to this folder, which must be empty.",
)
@click.option(
    "--public", is_flag=True, help="A repository that is made may be read by everyone."
)
@click.option(
    "--revision",
    default="",
    metavar="BRANCH",
    help="Branch to commit to.  [default: the repository's own]",
)
@click.option("--message", default="", metavar="TEXT", help="Of the commit.")
@json_option
def push(
    source: Path,
    repository: str,
    output: Path | None,
    public: bool,
    revision: str,
    message: str,
    as_json: bool,
) -> None:
    """Upload SOURCE, the folder of repzoo card or a model file, to Hugging Face.

    REPOSITORY is owner/name. It is made if it does not exist, and private unless --public. The card
    becomes its model card. Paths of this machine are replaced by file names. Log in before, with:
    hf auth login

    Other commands take the model as hf:owner/name.
    """
    with Console(as_json) as console:
        pushed = verbs.push(
            source,
            repository,
            output=output,
            public=public,
            revision=revision,
            message=message,
            progress=console.progress,
        )
    console.show(_pushed(pushed))
    if pushed.commit and any(name.endswith(".onnx") for name in pushed.files):
        console.suggest(["repzoo", "info", f"{pushed.name}@{pushed.commit}"])


def _pushed(pushed: verbs.Pushed) -> View:
    document = {
        "repository": pushed.repository,
        "files": list(pushed.files),
        "commit": pushed.commit,
        "url": pushed.url,
        "folder": None if pushed.folder is None else str(pushed.folder),
    }
    place = pushed.url or f"{pushed.folder}: for {pushed.repository}"
    return View(document, place, f"{len(pushed.files)} files", remarks=pushed.remarks)
