"""The wheel and the sdist: built from a copy of the tree, complete, and working when installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
IGNORED = (".*", "out", "runs", "build", "dist", "*.egg-info", "__pycache__")


def build(kind: str, folder: Path) -> Path:
    """Build a wheel (`build_wheel`) or an sdist (`build_sdist`) without network access."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*IGNORED))
    command = [sys.executable, "-c", BUILD, kind, str(folder)]
    ran = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder / ran.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_sdist", tmp_path_factory.mktemp("sdist"))


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    package = ROOT / "src"
    ours = [path for path in (package / "repzoo").rglob("*") if path.is_file()]
    expected = {
        path.relative_to(package).as_posix()
        for path in ours
        if "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("repzoo/")}
    assert packed == expected


def test_installed_wheel_folds_its_embedded_model(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True)
    code = (
        "import repzoo, pathlib, sys\n"
        "assert pathlib.Path(repzoo.__file__).is_relative_to(sys.argv[1]), repzoo.__file__\n"
        "from repzoo.cli import main\n"
        "main(['fold', 'repghostnet_050.digits', '-o', sys.argv[2]])\n"
    )
    out = tmp_path / "deploy.onnx"
    command = [sys.executable, "-c", code, str(site), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert out.is_file()


@pytest.mark.parametrize(
    "name",
    [
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "README_cn.md",
        "SECURITY.md",
        "constraints.txt",
        "benchmarks/int8.py",
        "docs/decisions/README.md",
        "tests/conftest.py",
        "tests/data/yuv_vectors.json",
        "tests/plugin_sample/pyproject.toml",
        "src/repzoo/zoo/catalog.toml",
    ],
)
def test_sdist_holds_what_a_packager_needs(name: str, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {Path(*Path(item).parts[1:]).as_posix() for item in archive.getnames()}
    assert name in names


def test_links_of_the_readme_on_pypi_are_absolute() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [part.split(")")[0] for part in readme.split("](")[1:]]
    assert targets
    assert all(target.startswith("https://") for target in targets), targets
