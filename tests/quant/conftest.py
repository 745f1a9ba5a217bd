"""The small classifier and a few digits as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.small_model import few_digits, small


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    pytest.importorskip(
        "sklearn", reason="the demo extra, with the digits, is not installed"
    )
    path = tmp_path / "small.onnx"
    path.write_bytes(small().to_bytes())
    return path


@pytest.fixture(scope="session")
def digit_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `few_digits` in folders, for the command line."""
    top = tmp_path_factory.mktemp("few-digits")
    for part, images in few_digits().parts.items():
        for index, key in enumerate(images.keys):
            folder = top / part / str(images.targets[index])
            folder.mkdir(parents=True, exist_ok=True)
            images.load(key).save(folder / f"{index}.png")
    return top
