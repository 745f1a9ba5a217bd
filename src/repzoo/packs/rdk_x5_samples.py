"""The newer layout of D-Robotics' model zoo: samples/vision/MODEL, beside the classic one.

conversion/ (configuration), evaluator/, model/ (where the .bin goes), runtime/python/ (MODEL.py,
main.py, run.sh) and test_data/, each with READMEs. The folder can be copied into a checkout of the
zoo. Its configurations refer to the ONNX files and calibration images of the pack around it.

Source: D-Robotics/rdk_model_zoo, branch rdk_x5, docs/Model_Zoo_Repository_Guidelines.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from repzoo.artifact import Artifact
from repzoo.packs import rdk_x5_yaml as configuration
from repzoo.packs.board_files import program, settings_text
from repzoo.packs.pack import PackFile
from repzoo.packs.parts import (
    LANGUAGES,
    SHELL_HEAD,
    file_name,
    labels_text,
    quoted,
    render,
)

FOLDER = "samples/vision"
ROOT = "../../../../"  # from conversion/ to the pack's folder
PARTS = ("", "conversion", "evaluator", "model", "runtime/python")
RUN = """\
model={model}
if [ ! -f "$model" ]; then
  echo "$model is not there; see ../../model/README.md" >&2
  exit 2
fi
python3 main.py "$@"
"""
COPY = """\
# From the pack around this folder, where hb_mapper wrote it.
cp {built} .
"""


def module_name(name: str) -> str:
    """A model's name as the name of a Python module."""
    plain = re.sub(r"\W+", "_", file_name(name), flags=re.ASCII).lower()
    return f"model_{plain}" if not plain[:1].isalpha() else plain


def sample_files(
    artifact: Artifact,
    sample: bytes,
    fallback: tuple[str, ...],
    facts: Mapping[str, Any],
) -> Iterator[PackFile]:
    """All files of the layout.

    Args:
        artifact: the packed model.
        sample: an image, as PNG.
        fallback: names of nodes that compute in int16.
        facts: what the READMEs know.
    """
    name = file_name(artifact.name)
    folder = f"{FOLDER}/{name}"
    text = configuration.yaml_text(artifact, fallback, ROOT)
    yield f"{folder}/conversion/{name}.yaml", text
    if facts["load"]:
        text = configuration.load_yaml_text(artifact, root=ROOT)
        yield f"{folder}/conversion/{name}{configuration.LOAD}.yaml", text
    yield from _runtime_files(artifact, f"{folder}/runtime/python")
    yield f"{folder}/test_data/sample.png", sample
    yield f"{folder}/test_data/labels.txt", labels_text(artifact)
    built = ROOT.removesuffix("/") + "/" + configuration.binary_path(artifact)
    head = SHELL_HEAD.format(about="Fetch the compiled model")
    copy = COPY.format(built=quoted(built))
    yield f"{folder}/model/download.sh", head + copy
    for part in PARTS:
        for language, readme in LANGUAGES.items():
            template = f"rdk_x5_samples/{part.replace('/', '_') or 'top'}.{language}.j2"
            path = PurePosixPath(folder) / part / readme
            values = {**facts, "module": module_name(name)}
            yield str(path), render(template, **values)


def _runtime_files(artifact: Artifact, folder: str) -> Iterator[PackFile]:
    module = module_name(artifact.name)
    yield f"{folder}/{module}.py", program("classifier.py")
    main = program("main.py").replace('"classifier"', f'"{module}"')
    for name in ("labels.txt", "sample.png"):
        moved = f'HERE.parent.parent / "test_data" / "{name}"'
        main = main.replace(f'HERE / "{name}"', moved)
    yield f"{folder}/main.py", main
    model = f"../../model/{configuration.prefix(artifact)}.bin"
    yield f"{folder}/model.json", settings_text(artifact, model)
    head = SHELL_HEAD.format(about="Classify the sample image on the board")
    yield f"{folder}/run.sh", head + RUN.format(model=quoted(model))
