"""Files: whole or not at all, whatever fails.

A full disk is played by the kernel's own limit on file sizes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from repzoo import storage
from repzoo.errors import InputError

NOT_A_FOLDER = Path("/proc/repzoo-test")  # nothing can be made there, even by root


@contextlib.contextmanager
def disk_of(size: int) -> Iterator[None]:
    """While the block runs no file of this process can grow above `size` bytes: write(2) fails,
    as on a full disk.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_sha256_is_that_of_hashlib() -> None:
    assert storage.sha256_of(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_a_file_is_read_up_to_the_limit_and_refused_above(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert storage.read_bounded(path, 5) == b"12345"
    with pytest.raises(InputError, match="x has 5 bytes; at most 4 are accepted here"):
        storage.read_bounded(path, 4)


def test_what_cannot_be_read_is_refused_with_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        tmp_path: "is a directory; expected a file",
        tmp_path / "none": "does not exist; check the path",
        tmp_path / "pipe": "is not a regular file",
        Path("/dev/zero"): "is not a regular file",
        tmp_path / "loop": "cannot be read",
        tmp_path / ("x" * 300): "cannot be read: File name too long",
    }
    for path, message in cases.items():
        with pytest.raises(InputError, match=message):
            storage.read_bounded(path, 10)


def test_lines_are_utf8_without_mark_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes("\ufeffé a\r\n\r\n  \nb\u2028c\n".encode())
    assert storage.read_lines(path) == ["é a", "b\u2028c"]
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(
        InputError, match=r"x is not UTF-8 text \(byte 3\); save it as UTF-8"
    ):
        storage.read_lines(path)


def test_writing_replaces_the_whole_file_and_makes_the_folders(tmp_path: Path) -> None:
    path = (
        tmp_path / "a" / "b" / ("名" * 80)
    )  # 240 bytes: the name of the temporary file must not be longer than its own
    storage.write_atomically(path, b"a long first text")
    storage.write_atomically(path, "zweitér")
    assert path.read_text("utf-8") == "zweitér"
    assert names(path.parent) == [path.name]


def test_a_new_file_has_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.write_atomically(tmp_path / "x", b"")
    finally:
        assert os.umask(before) == 0o027
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failure_in_the_block_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail() -> None:
        with storage.written_aside(path) as aside:
            aside.write_bytes(b"half")
            assert path.read_bytes() == b"old"
            raise failure

    with pytest.raises(InputError if failure is OSError else failure):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with (
        disk_of(1000),
        pytest.raises(
            InputError,
            match="x cannot be written: File too large; free room or give another place",
        ),
    ):
        storage.write_atomically(path, b"1" * 1001)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]
    with disk_of(1000):
        storage.write_atomically(path, b"1" * 1000)
    assert path.stat().st_size == 1000


def test_several_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "new" / "large"
    small.write_text("old")
    for order in ([small, large], [large, small]):
        contents = [(path, b"1" * (1001 if path == large else 5)) for path in order]
        with disk_of(1000), pytest.raises(InputError, match="large cannot be written"):
            storage.write_together(contents)
        assert small.read_text() == "old"
        assert names(tmp_path) == ["new", "small"]
        assert names(tmp_path / "new") == []
    storage.write_together([(small, "both"), (large, b"written")])
    assert (small.read_text(), large.read_text()) == ("both", "written")


def test_two_outputs_in_one_place_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="two outputs would both be written to"):
        storage.write_together(
            [(tmp_path / "x", "1"), (tmp_path / "a" / ".." / "x", "2")]
        )
    assert names(tmp_path) == ["a"]


def test_places_that_can_never_be_written_are_refused_before_any_work(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("a file")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        tmp_path: "is a directory; give a file name with -o",
        tmp_path / "file" / "below": "file is a file; give another with -o",
        tmp_path / "file" / "far" / "below": "file is a file; give another with -o",
        tmp_path / "pipe": "is not a regular file",
        Path("/dev/null"): "is not a regular file",
    }
    for path, message in cases.items():
        for attempt in (
            storage.require_writable,
            lambda path: storage.write_atomically(path, b"x"),
        ):
            with pytest.raises(InputError, match=message):
                attempt(path)
    assert names(tmp_path) == ["file", "pipe"]
    assert not Path("/dev/null").is_file()


def test_checking_a_writable_path_creates_nothing(
    tmp_path: Path,
) -> None:
    storage.require_writable(tmp_path / "a" / "b" / "c")
    storage.require_writable_folder(tmp_path / "a" / "b")
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
def test_a_read_only_file_system_is_an_input_error() -> None:
    for attempt in (
        lambda: storage.require_writable(NOT_A_FOLDER / "x"),
        lambda: storage.require_writable_folder(NOT_A_FOLDER),
        lambda: storage.write_atomically(NOT_A_FOLDER / "x", b"x"),
        lambda: storage.make_folder(NOT_A_FOLDER),
        lambda: storage.append_lines(NOT_A_FOLDER / "x", ["x"]),
    ):
        with pytest.raises(InputError, match="the folder /proc/repzoo-test cannot be"):
            attempt()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(
        InputError, match="cannot be written: Permission denied; give another with -o"
    ):
        storage.require_writable(tmp_path / "x")


def test_lines_are_appended_completely_or_not_at_all_on_a_full_disk(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new" / "x.jsonl"
    storage.append_lines(path, ["one", "zwei é"])
    storage.append_lines(path, [])
    storage.append_lines(path, ["three"])
    assert path.read_text("utf-8") == "one\nzwei é\nthree\n"
    with (
        disk_of(40),
        pytest.raises(InputError, match=r"x\.jsonl cannot be written: File too large"),
    ):
        storage.append_lines(path, ["four", "5" * 100])
    assert path.read_text("utf-8") == "one\nzwei é\nthree\n"


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "x"
    lines = [
        [f"{writer}-{number}" * 200 for number in range(20)] for writer in range(8)
    ]
    workers = [
        threading.Thread(target=storage.append_lines, args=(path, chunk))
        for chunk in lines
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    written = path.read_text().splitlines()
    assert sorted(written) == sorted(line for chunk in lines for line in chunk)
    assert all(
        chunk == written[written.index(chunk[0]) :][: len(chunk)] for chunk in lines
    )


def test_the_cache_makes_a_file_once_and_nothing_when_making_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path))
    calls: list[Path] = []

    def make(path: Path) -> None:
        calls.append(path)
        path.write_text("model")

    first, second = (storage.cached_file("kind", "one", make) for _ in range(2))
    assert first == second == tmp_path / "kind" / "one"
    assert (len(calls), first.read_text()) == (1, "model")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise InputError("no")

    with pytest.raises(InputError, match=r"^no$"):
        storage.cached_file("kind", "two", fail)
    assert list((tmp_path / "kind").iterdir()) == [first]


def test_the_cache_keeps_what_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path))
    monkeypatch.setattr(storage, "CACHE_BYTES", 35)

    def make(path: Path) -> None:
        path.write_bytes(bytes(10))

    for age, name in enumerate("abc"):
        path = storage.cached_file("kind", name, make)
        os.utime(path, (1000 + age, 1000 + age))
    storage.cached_file("kind", "a", lambda _: None)  # used again: now the youngest
    storage.cached_file("kind", "d", make)
    assert {path.name for path in (tmp_path / "kind").iterdir()} == {
        "a",
        "c",
        "d",
    }  # not b


def test_the_caches_place_is_the_users_choice_then_xdgs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REPZOO_CACHE", "/one")
    assert storage.cache_folder() == Path("/one")
    monkeypatch.delenv("REPZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert storage.cache_folder() == Path("/two/repzoo")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert storage.cache_folder() == Path.home() / ".cache" / "repzoo"


def test_a_cache_that_cannot_be_made_says_how_to_move_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="file"):
        storage.cached_file("kind", "one", lambda _: None)


def test_what_a_killed_process_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    """Parts of processes that still write, and other people's files, stay."""
    script = (
        "import os, pathlib, signal, sys\n"
        "from repzoo.storage import written_aside\n"
        "with written_aside(pathlib.Path(sys.argv[1])) as aside:\n"
        "    aside.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "state.pt"
    subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert len(list(tmp_path.glob(".repzoo.*.part"))) == 1
    foreign = tmp_path / ".repzoo.0123abcd-1.x.part"
    foreign.touch()
    with storage.written_aside(target):
        storage.write_atomically(tmp_path / "log.csv", "epoch\n")
        assert (
            len(list(tmp_path.glob(".repzoo.*.part"))) == 2
        )  # the foreign one, and ours
    assert {path.name for path in tmp_path.iterdir()} == {
        foreign.name,
        "log.csv",
        "state.pt",
    }
