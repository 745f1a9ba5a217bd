"""Plug-ins: nothing is imported early, and what is missing, unknown or doubled is said in a
sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from repzoo.engines import ENGINES
from repzoo.errors import InputError, MissingExtra
from repzoo.plugins import Plugin, PluginTable, unknown

GROUP = "repzoo.tests"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install("dist", "name = module:object")`: a real distribution with entry points on
    sys.path.
    """

    def write(distribution: str, *points: str) -> None:
        folder = tmp_path / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *points]))

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


def table(**builtin: Plugin) -> PluginTable:
    return PluginTable("engine", GROUP, builtin)


def test_loading_imports_on_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repzoo_lazy_plugin.py").write_text("class Thing: pass")
    monkeypatch.syspath_prepend(str(tmp_path))
    some = table(lazy=Plugin("repzoo_lazy_plugin:Thing"))
    assert some.names() == ["lazy"]
    assert "repzoo_lazy_plugin" not in sys.modules
    assert some.load("lazy").__name__ == "Thing"
    monkeypatch.delitem(sys.modules, "repzoo_lazy_plugin")


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(
        InputError,
        match=r"^no engine is called 'onnxruntim'; did you mean onnxruntime\? known: onnxruntime, ",
    ):
        ENGINES.load("onnxruntim")
    assert (
        unknown("engine", "zzz", ["alpha", "beta"])
        == "no engine is called 'zzz'; known: alpha, beta"
    )
    many = ["repvgg_a0", "repvgg_a1", *(f"fasternet_{index}" for index in range(20))]
    assert unknown("model", "repvgg_a9", many).endswith(
        "did you mean repvgg_a1 or repvgg_a0?"
    )
    assert unknown("model", "zzz", many).endswith("fasternet_1 and 18 more")


def test_a_name_that_is_spelled_otherwise_is_not_guessed() -> None:
    with pytest.raises(InputError) as caught:
        ENGINES.load("tensorrt")
    assert "did you mean" not in str(caught.value)
    assert ", ".join(ENGINES.names()) in str(caught.value)


def test_a_missing_dependency_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repzoo_needy_plugin.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        MissingExtra,
        match=r"the engine 'needy' needs.*type: .*pip install 'repzoo\[openvino\]'",
    ) as caught:
        table(needy=Plugin("repzoo_needy_plugin:Thing", "openvino")).load("needy")
    assert (caught.value.extra, caught.value.exit_code) == ("openvino", 2)


@pytest.mark.parametrize(
    "target", ["repzoo.no_such_module:X", "repzoo.errors:NoSuchThing"]
)
def test_an_import_error_of_our_own_is_not_reported_as_a_missing_extra(
    target: str,
) -> None:
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        table(broken=Plugin(target, "openvino")).load("broken")


def test_third_parties_come_after_the_built_in_ones(install: Install) -> None:
    install("other", "path = pathlib:Path")
    some = table(ours=Plugin("json:dumps"))
    assert some.names() == ["ours", "path"]
    assert some.load("path") is Path


@pytest.mark.parametrize("clash", ["built in", "third party"])
def test_two_of_one_name_are_refused_and_both_named(
    install: Install, clash: str
) -> None:
    install("one", "twice = pathlib:Path")
    if clash == "third party":
        install("two", "twice = json:dumps")
    some = table(**({"twice": Plugin("json:loads")} if clash == "built in" else {}))
    with pytest.raises(
        InputError,
        match=r"two engines are called 'twice': (pathlib:Path|json:\w+) and .*; uninstall one",
    ):
        some.names()


@pytest.mark.parametrize("target", ["surely_not_installed:X", "pathlib:NoSuchThing"])
def test_a_third_partys_broken_plugin_is_named(install: Install, target: str) -> None:
    install("other", f"broken = {target}")
    with pytest.raises(
        InputError,
        match=rf"the engine 'broken' \({target}\) cannot be loaded: .*; repair or uninstall it",
    ):
        table().load("broken")


def test_a_missing_module_of_a_plugin_that_needs_no_extra_is_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repzoo_plain_plugin.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        table(plain=Plugin("repzoo_plain_plugin:Thing")).load("plain")
