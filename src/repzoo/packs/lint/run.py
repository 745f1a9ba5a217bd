"""The lint of a path: which files are there, whose rules they fall under, and all findings."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repzoo.errors import InputError
from repzoo.packs.lint import (
    calibration,
    folder,
    hailo,
    rdk_x5,
    rknn,
    sophgo,
    vastai,
    vdsp,
)
from repzoo.packs.lint.common import beside
from repzoo.packs.lint.document import (
    Document,
    Unreadable,
    read_json,
    read_text,
    read_yaml,
)
from repzoo.packs.lint.facts import ModelFacts, Workspace
from repzoo.packs.lint.finding import SEVERITIES, Finding, in_order
from repzoo.packs.pack import MANIFEST, TARGETS
from repzoo.summary import Summarized, Summary, Table

MAX_FILES = 20_000
YAML, JSON = (".yaml", ".yml"), (".json",)
SUFFIXES = (*YAML, *JSON, ".sh", ".py", ".alls", ".txt")
KNOWN = (
    "hb_mapper's or vamc's YAML, a vdsp_params JSON, a script that calls rknn-toolkit2, its "
    "dataset.txt, shell steps of tpu-mlir, Hailo's YAML or .alls, or a folder with these"
)
Lint = Callable[[Workspace], Iterable[Finding]]


@dataclass
class Found:
    """The files below a path that have rules.

    Attributes:
        lints: what to run, by file as messages name it.
        unreadable: findings about files that cannot be parsed.
        models: ONNX files that configurations name, by the configuration.
        documents: configurations by kind, to compare them with each other.
    """

    lints: dict[str, Lint] = field(default_factory=dict)
    unreadable: list[Finding] = field(default_factory=list)
    models: dict[str, Path] = field(default_factory=dict)
    documents: dict[str, list[Document]] = field(default_factory=dict)


@dataclass(frozen=True)
class LintReport(Summarized):
    """What was found.

    Attributes:
        path: that was checked.
        files: that have rules and were read.
        findings: errors first.
        models: that files were compared with.
    """

    path: Path
    files: tuple[str, ...]
    findings: tuple[Finding, ...]
    models: tuple[str, ...] = ()

    def count(self, severity: str) -> int:
        """Number of findings of a severity."""
        return sum(item.severity == severity for item in self.findings)

    def _summary(self) -> Summary:
        """A row for each finding, and what was checked."""
        rows = []
        for item in self.findings:
            rows.append([item.severity, item.place, item.message, item.cost, item.fix])
        headings = ["", "where", "finding", "costs", "write instead"]
        tables = [Table(headings, rows)] if rows else []
        return Summary(tables, [self.sentence()])

    def sentence(self) -> str:
        """What was checked against what, and how much is wrong."""
        counts: list[str] = []
        for severity in SEVERITIES:
            number = self.count(severity)
            if number:
                counts.append(f"{number} {severity}{'' if number == 1 else 's'}")
        checked = f"{len(self.files)} configurations"
        if len(self.files) == 1:
            checked = self.files[0]
        against = f" against {', '.join(self.models)}" if self.models else ""
        return f"{checked}{against}: {', '.join(counts) or 'nothing is wrong'}"


def find(path: Path) -> Found:
    """The files below `path` that have rules.

    Raises:
        InputError: no such path, more than MAX_FILES files, a single file that is none of the
            known kinds, or that cannot be parsed.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; expected {KNOWN}")
    root = path if path.is_dir() else path.parent
    found = Found()
    for file in _candidates(path):
        shown = str(file.relative_to(root))
        try:
            _add(found, file, shown)
        except Unreadable as error:
            if file == path:
                raise
            found.unreadable.append(
                Finding("unreadable", str(error).replace(str(file), shown), file=shown)
            )
    is_folder = path.is_dir() and (_is_calibration(path) or (path / MANIFEST).is_file())
    if not found.lints and not found.unreadable and not is_folder:
        raise InputError(
            f"{path} holds nothing that repzoo can check; expected {KNOWN}"
        )
    return found


def _candidates(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    # Bounded before they are sorted: a disk may lie below a folder.
    files = list(itertools.islice(path.rglob("*"), MAX_FILES + 1))
    if len(files) > MAX_FILES:
        raise InputError(
            f"{path} holds more than {MAX_FILES} files; name the folder of one pack, or a "
            "configuration by itself"
        )
    for file in sorted(files):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            yield file


def _add(found: Found, file: Path, shown: str) -> None:
    suffix = file.suffix.lower()
    if suffix in YAML:
        _add_yaml(found, read_yaml(file, shown))
    elif suffix in JSON:
        document = read_json(file, shown)
        if vdsp.is_operator(document.value):
            found.documents.setdefault("vdsp", []).append(document)
            found.lints[shown] = lambda workspace: vdsp.lint(document, workspace)
    elif suffix == ".alls":
        script = hailo.read_alls(file, shown)
        found.lints[shown] = lambda workspace: hailo.lint_alls(script, workspace)
    elif suffix == ".py" and rknn.is_script(read_text(file)):
        parsed, calls = rknn.read_script(file, shown)
        _note_model(found, parsed, parsed.text("load_onnx", "model"))
        found.lints[shown] = lambda workspace: rknn.lint(parsed, calls, workspace)
    elif suffix == ".sh" and sophgo.is_script(read_text(file)):
        shell, steps = sophgo.read_steps(file, shown)
        _note_model(found, shell, shell.text("model_transform", "model_def"))
        found.lints[shown] = lambda workspace: sophgo.lint(shell, steps, workspace)
    elif file.name == "dataset.txt":
        found.lints[shown] = lambda workspace: rknn.lint_dataset(file, workspace)


def _add_yaml(found: Found, document: Document) -> None:
    shown, value = document.shown, document.value
    if rdk_x5.is_configuration(value):
        _note_model(found, document, document.text("model_parameters", "onnx_model"))
        found.lints[shown] = lambda workspace: rdk_x5.lint(document, workspace)
    elif vastai.is_configuration(value):
        _note_model(found, document, document.text("frontend", "checkpoint"))
        found.documents.setdefault("vamc", []).append(document)
        found.lints[shown] = lambda workspace: vastai.lint(document, workspace)
    elif hailo.is_configuration(value):
        found.lints[shown] = lambda workspace: hailo.lint(document, workspace)


def _is_calibration(path: Path) -> bool:
    return path.name.startswith("calibration") and any(calibration.files_of(path))


def _note_model(found: Found, document: Document, name: str) -> None:
    """Remember the ONNX file that a configuration names, where it is there."""
    model = beside(document, name) if name else None
    if model and model.is_file() and model.suffix == ".onnx":
        found.models[document.shown] = model


def models_in(path: Path, found: Found) -> dict[str, Path]:
    """The ONNX file of each configuration; a folder's only one is that of those that name none."""
    files = set(found.models.values())
    if path.is_dir() and not files:
        files = set(path.glob("*.onnx"))
    if len(files) != 1:
        return found.models
    (only,) = files
    return {"": only, **dict.fromkeys(found.lints, only), **found.models}


def check(
    path: Path,
    found: Found,
    models: Mapping[str, ModelFacts],
    images: Sequence[calibration.Pixels] = (),
) -> LintReport:
    """All findings below `path`, without measured costs.

    Args:
        path: a file or a folder.
        found: what `find` returned for it.
        models: by configuration; "" for whatever else there is. A configuration without a model
            is checked by itself.
        images: prepared photographs, to check the order of channels of calibration files.
    """
    root = path if path.is_dir() else path.parent
    manifest = folder.manifest_of(root) if path.is_dir() else {}
    steps = path.is_dir() and any(
        folder.STEP.fullmatch(item.name) for item in root.glob("*.sh")
    )
    is_pack = bool(manifest) or steps
    # Files without a model of their own are compared with any: a pack has one, in several forms.
    model = models.get("") or next(iter(models.values()), None)
    photographs = tuple(images)
    workspace = Workspace(root, model, is_pack, photographs)
    findings = list(found.unreadable)
    for shown, lint in found.lints.items():
        own = Workspace(root, models.get(shown), is_pack, photographs)
        findings += lint(own)
    configurations, operators = (
        found.documents.get(kind, []) for kind in ("vamc", "vdsp")
    )
    for first, second in vdsp.pairs(configurations, operators):
        own = Workspace(root, models.get(first.shown), is_pack)
        findings += vdsp.disagreements(first, second, own)
    if path.is_dir():
        findings += folder.check(workspace)
        findings += _of_plugin(root, manifest)
        if not found.lints and _is_calibration(root):
            findings += _calibration_alone(workspace)
    shown_models = {item.shown: None for item in models.values()}
    return LintReport(
        path, tuple(found.lints), tuple(in_order(findings)), tuple(shown_models)
    )


def _calibration_alone(workspace: Workspace) -> Iterator[Finding]:
    """A calibration folder without its configuration."""
    root, model, preprocess = workspace.folder, workspace.model, workspace.preprocess
    shape = None
    if preprocess:
        shape = (preprocess.channels, preprocess.height, preprocess.width)
    expected = calibration.Expected(
        shape,
        calibration.dtype_by_name(root.name),
        preprocess.color if preprocess else "",
        model.source if model else "by the folder's name",
    )
    yield from calibration.check(root, root.name, expected, workspace.images)


def _of_plugin(root: Path, manifest: dict[str, Any]) -> Iterator[Finding]:
    """Findings of the target's own `lint`, an optional member of the target's class."""
    name, _, option = str(manifest.get("target", "")).partition(":")
    if name not in TARGETS.names():
        return
    kind = TARGETS.load(name)
    if hasattr(kind, "lint"):
        target = kind(option) if option else kind()
        yield from target.lint(root)
