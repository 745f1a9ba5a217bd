"""Local paths in texts that others will read."""

from __future__ import annotations

from pathlib import Path

import pytest

from repzoo.local_paths import LocalPaths


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalPaths:
    """Those of the account ann, whose home folder has a space in its name."""
    monkeypatch.setenv("HOME", "/home/ann lee")
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.chdir(tmp_path)
    return LocalPaths([Path("/projects of ann/secret")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in /home/ann/a/x.onnx, and", "in x.onnx, and"),
        ("'/home/ann lee/x.onnx'", "'x.onnx'"),
        ("/home/ann lee", "home"),
        ("/home/ann", "home"),
        ("/projects of ann/secret/a/b.png", "b.png"),
        ('{"note": "a\\n/mnt/c/d.png"}', '{"note": "a\\nd.png"}'),
        (r'"C:\\Users\\ann\\x.onnx"', '"x.onnx"'),
        ("~/x.onnx ~ann/y.onnx", "x.onnx y.onnx"),
        ("file:///home/ann/x.html", "x.html"),
        ("--data=/tmp/photos/", "--data=photos"),
        (r"/home/ann/my\_model.onnx", r"my\_model.onnx"),
    ],
)
def test_of_a_path_the_last_part_stays(
    paths: LocalPaths, text: str, expected: str
) -> None:
    assert paths.replace_in(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/x",
        "</div> <svg/>",
        "/stages/stages.0/conv/Conv",
        "data:image/jpeg;base64,/9j/4AAQSkZJRg",
        "mean 1/2, float / INT8",
        "hf:owner/name/file.onnx",
        "/home page",
        "docs/tmp/x.md",
    ],
)
def test_what_only_looks_like_a_path_stays(paths: LocalPaths, text: str) -> None:
    assert paths.replace_in(text) == (text, 0)


def test_arguments_of_a_command_name_files_without_folders(
    paths: LocalPaths, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "a b"
    folder.mkdir(parents=True)
    for argument, expected in (
        ("/x/y/m.onnx", "m.onnx"),
        ("--data=../photos", "--data=photos"),
        ("runs/a b", "a b"),
        ("/home/ann lee", "home"),
        ("hf:owner/name", "hf:owner/name"),
        ("--mean=0.5/1", "--mean=0.5/1"),
        ("repghostnet_050", "repghostnet_050"),
    ):
        assert paths.short_argument(argument) == expected


def test_the_user_is_a_whole_word_and_no_shared_account(
    paths: LocalPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths.names_user_in("by ann.")
    assert not paths.names_user_in("planned")
    monkeypatch.setenv("LOGNAME", "root")
    assert not LocalPaths().names_user_in("root")
