"""Environments of tool chains: made, checked, and refused in one sentence when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import repzoo
from repzoo.errors import InputError
from repzoo.vendors import environment, program
from repzoo.vendors.recipes import Recipe, recipes

Run = Callable[..., Any]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "cache"))


def toy(**changes: Any) -> Recipe:
    """A tool chain of nothing but a Python environment, which says that it is version 7.1."""
    recipe = Recipe(
        name="toy",
        about="a toy",
        python=(HERE,),
        steps=(),
        check=("python", "-c", "print('loading'); print('toy, version 7.1')"),
        version="7.1",
        terms="none",
        gigabytes=0.01,
    )
    return replace(recipe, **changes)


def test_it_is_installed_outside_of_this_environment_and_then_found() -> None:
    recipe = toy()
    assert not environment.status(recipe).installed
    with pytest.raises(
        InputError, match="is not installed; type: repzoo toolchains toy"
    ):
        environment.require_installed(recipe)
    made = environment.install(recipe, sys.executable)
    assert made.version == "toy, version 7.1"
    assert made.size > 0
    folder = environment.require_installed(recipe)
    prefix = environment.run(
        recipe, ["python", "-c", "import sys; print(sys.prefix)"], 60
    )
    assert Path(prefix.strip()).resolve() == folder.resolve()


def test_its_own_programs_come_first(tmp_path: Path) -> None:
    recipe = toy()
    environment.install(recipe, sys.executable)
    code = "import shutil; print(shutil.which('python'))"
    python = environment.run(recipe, ["python", "-c", code], 60, tmp_path).strip()
    assert Path(python).parent == environment.folder_of(recipe) / "bin"


def test_what_is_half_made_does_not_count() -> None:
    recipe = toy(version="8.0")
    with pytest.raises(InputError, match=r"says 'toy, version 7.1' where version 8.0"):
        environment.install(recipe, sys.executable)
    assert environment.folder_of(recipe).is_dir()
    assert not environment.status(recipe).installed


def test_another_version_is_named() -> None:
    environment.install(toy(), sys.executable)
    with pytest.raises(InputError, match=r"installed in version toy, version 7.1; exp"):
        environment.require_installed(toy(version="8.0"))


@pytest.mark.parametrize(
    ("changes", "python", "words"),
    [
        ({"python": ("2.6",)}, "", "needs Python 2.6, and none was found; install one"),
        ({"python": ("2.6",)}, sys.executable, f"needs Python 2.6; .* is {HERE}"),
        ({}, "/nowhere/python", "is no Python that runs"),
        ({"gigabytes": 1e9}, sys.executable, "free; make room, or set REPZOO_CACHE"),
        (
            {"check": ("python", "-c", "raise SystemExit('broken')")},
            sys.executable,
            "broken",
        ),
        ({"check": ("absent", "--version")}, sys.executable, "cannot be run"),
    ],
)
def test_one_sentence_says_what_is_wrong(
    changes: dict[str, Any], python: str, words: str
) -> None:
    recipe = toy(**changes)
    with pytest.raises(InputError, match=words):
        environment.install(recipe, python)
    assert not environment.status(recipe).installed


def test_what_hangs_is_ended() -> None:
    recipe = toy()
    environment.install(recipe, sys.executable)
    sleep = ["python", "-c", "import time; time.sleep(600)"]
    with pytest.raises(InputError, match="did not end within 0 s"):
        environment.run(recipe, sleep, 0.3)


def test_who_watches_a_log_sees_whole_lines_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "POLL_SECONDS", 0.01)
    recipe = toy()
    environment.install(recipe, sys.executable)
    code = (
        "import time\n"
        "for part in ('load', 'ing\\n', 'build', 'ing\\n', 'end\\n'):\n"
        "    print(part, end='', flush=True)\n"
        "    time.sleep(0.05)\n"
    )
    log = tmp_path / "tool.log"
    seen: list[str] = []

    def watch(lines: str) -> bool:
        seen.append(lines)
        return False

    program.run_logged(recipe, ["python", "-c", code], tmp_path, log, 60, watch=watch)
    assert log.read_text() == "loading\nbuilding\nend\n"
    assert all(text.endswith("\n") for text in seen if text)
    assert log.read_text().startswith("".join(seen))


def test_every_recipe_pins_its_tool() -> None:
    assert {"rdk-x5", "rknn"} <= recipes().keys()
    for recipe in recipes().values():
        assert recipe.steps[0].alone
        assert all("==" in package for package in recipe.steps[0].packages)
        assert recipe.terms


def test_the_command_line(run: Run, tmp_path: Path) -> None:
    document = run("toolchains", "--json").document
    rows = {row["name"]: row for row in document["toolchains"]}
    assert rows["rdk-x5"]["installed"] is False
    assert rows["rdk-x5"]["install"] == "repzoo toolchains rdk-x5 --install"
    assert str(tmp_path) in rows["rknn"]["folder"]
    shown = run("toolchains", "rknn")
    assert "not installed" in shown.out
    assert "rdk-x5" not in shown.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rdk"], "no tool chain is called 'rdk'; did you mean rdk-x5?"),
        (["--install"], "say which tool chains to install: rdk-x5, rknn"),
        (["rdk-x5", "--install", "--python", "/nowhere"], "is no Python that runs"),
    ],
)
def test_bad_input(run: Run, arguments: list[str], words: str) -> None:
    ran = run("toolchains", *arguments)
    assert ran.code == 2
    assert words in " ".join(ran.err.split())


def test_the_public_function() -> None:
    (status,) = repzoo.toolchains(["rknn"])
    assert not status.installed
