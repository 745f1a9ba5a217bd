"""The verb `push`: a model and its card to Hugging Face."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from repzoo.errors import InputError
from repzoo.packs.pack import require_free
from repzoo.progress import Progress, silent
from repzoo.report.front_matter import UNKNOWN_LICENSE
from repzoo.storage import write_together
from repzoo.verbs.pushed_files import without_local_paths
from repzoo.zoo import hub

# What a card's folder holds. Nothing else in a folder is uploaded.
PUSHED = (".onnx", ".safetensors", ".json", ".jsonl", ".md", ".svg", ".html")
CARD = "card.md"
README = "README.md"  # what Hugging Face shows
MAX_CARD_BYTES = 2**22
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Pushed:
    """What `push` has uploaded, or written to a folder.

    repository  owner/name
    files       paths in the repository
    commit      hash of the commit, 40 hex digits; "" where nothing was uploaded
    url         of the commit; "" likewise
    folder      that was written instead; None where it was uploaded
    remarks     what the model card lacks, and what was left out
    """

    repository: str
    files: tuple[str, ...]
    commit: str = ""
    url: str = ""
    folder: Path | None = None
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """By which `load` takes the model."""
        return f"{hub.PREFIX}{self.repository}"


def push(
    source: str | Path,
    repository: str,
    *,
    output: str | Path | None = None,
    public: bool = False,
    revision: str = "",
    message: str = "",
    progress: Progress = silent,
) -> Pushed:
    """Upload the folder of a card, or a model file, to Hugging Face as one commit.

    The card in English becomes README.md, the model card that Hugging Face shows. What is uploaded
    holds no paths of this machine: file names replace them, and a remark says where. The server is
    $HF_ENDPOINT where that is set; who is logged in is huggingface_hub's matter (`hf auth login`,
    or $HF_TOKEN).

    source      folder that `card` wrote, or a .onnx or .safetensors file
    repository  owner/name; it is made where it does not exist
    output      folder to write the repository's files to, instead of uploading them
    public      whether a repository that is made may be read by everyone
    revision    branch to commit to; "": the default one

    Raises:
        InputError: nothing to upload, no owner/name, no right to write, or a server that is not
            reached.
        MissingExtra: huggingface_hub is not installed, and `output` is not given.
    """
    hub.require_repository(repository)
    path = Path(source)
    files, left_out = _files_of(path)
    remarks = [*_card_remarks(files.get(README))]
    if left_out:
        remarks.append(f"not uploaded: {', '.join(left_out)}")
    with tempfile.TemporaryDirectory(prefix="repzoo-push-") as temporary:
        cleaned, replaced = without_local_paths(files, path, Path(temporary))
        remarks += replaced
        if output is not None:
            pushed = _write(Path(output), repository, cleaned)
        else:
            progress(f"push {repository}", 0, 0)
            commit, url = hub.push(
                repository,
                cleaned,
                message or f"Add {path.resolve().name} by repzoo",
                private=not public,
                revision=revision,
            )
            pushed = Pushed(repository, tuple(cleaned), commit, url)
    return replace(pushed, remarks=tuple(remarks))


def _write(folder: Path, repository: str, files: Mapping[str, Path]) -> Pushed:
    """Write the repository's files to `folder`, which must be free."""
    require_free(folder)
    write_together([(folder / name, _chunks(file)) for name, file in files.items()])
    return Pushed(repository, tuple(files), folder=folder)


def _files_of(source: Path) -> tuple[dict[str, Path], list[str]]:
    """(files by their path in the repository, names of those that are left out)."""
    if source.is_file():
        if source.suffix not in (".onnx", ".safetensors"):
            raise InputError(
                f"{source} is no model; give a .onnx or .safetensors file, or the folder of "
                "repzoo card"
            )
        return {source.name: source}, []
    if not source.is_dir():
        raise InputError(f"{source} does not exist; give the folder of repzoo card")
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for path in sorted(source.iterdir()):
        # A link might lead to any file of the user's.
        if path.is_file() and not path.is_symlink() and path.suffix in PUSHED:
            files[path.name] = path
        else:
            left_out.append(path.name)
    if not any(name.endswith((".onnx", ".safetensors")) for name in files):
        raise InputError(
            f"{source} holds no .onnx or .safetensors file; give the folder of repzoo card"
        )
    if README not in files and CARD in files:
        # Besides, not instead: the card in Chinese links to it by its own name.
        files[README] = files[CARD]
    return files, left_out


def _card_remarks(card: Path | None) -> list[str]:
    """What Hugging Face will miss in the model card."""
    if card is None:
        return ["there is no card.md, so Hugging Face will show no model card"]
    if card.stat().st_size > MAX_CARD_BYTES:
        raise InputError(f"{card} is larger than {MAX_CARD_BYTES:,} bytes")
    stated = _license_of(card.read_text("utf-8", errors="replace"))
    if stated in ("", UNKNOWN_LICENSE):
        return [
            f"{card.name} states no license; write it into the first lines of the file, or make "
            "the card with --license"
        ]
    return []


def _license_of(text: str) -> str:
    """The license in the front matter of a card; "" where there is none."""
    if not text.startswith("---\n"):
        return ""
    block, fence, _ = text.removeprefix("---\n").partition("\n---")
    if not fence:
        return ""
    try:
        metadata = yaml.safe_load(block)
    except yaml.YAMLError:
        return ""
    return str(metadata.get("license", "")) if isinstance(metadata, dict) else ""


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
