"""Paths of this machine in texts that others will read: each is replaced by its last part.

A folder's name may be that of a user, a customer or a project. Names that merely look like paths
stay: addresses, and names of nodes, which PyTorch's exporter begins with a slash.
"""

from __future__ import annotations

import getpass
import re
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePath

# Of every system, since a text may come from another one.
KNOWN_FOLDERS = ("home", "Users", "root", "tmp", "mnt", "media", "var", "opt", "srv")
FURTHER_FOLDERS = ("usr", "private", "Volumes", "workspace", "work", "data")
# Folders of a system that hold nobody's files.
SYSTEM_FOLDERS = {"bin", "boot", "dev", "etc", "proc", "run", "sbin", "sys"}
# Accounts that name nobody.
SHARED_ACCOUNTS = {"root", "user", "admin", "ubuntu", "debian", "runner", "jovyan"}
HOME = "home"
# Before a path stands neither a letter nor what stands within an address, a tag or Base64. In JSON
# a letter may end a line.
_START = r"(?:(?<=\\n)|(?<=\\t)|(?<![\w/.<+~]))"
# After a folder's whole name.
_END = r"(?=[/\\\s\"'`<>|;,)\]}]|$)"
_PART = r"[^\s\"'`<>|/\\;,()\[\]{}]+"


class LocalPaths:
    """The paths of this machine and its user, to be found in texts.

    folders  further folders whose paths are replaced
    """

    def __init__(self, folders: Iterable[Path] = ()) -> None:
        self._folders = tuple(folders)
        self._home = Path.home()
        self.user = _user_name(self._home)

    def replace_in(self, text: str) -> tuple[str, int]:
        """`text` with the last part of each path alone, and how many paths that changed."""
        replaced = 0

        def shorten(match: re.Match[str]) -> str:
            nonlocal replaced
            replaced += 1
            return self._last_part(match[0])

        return self._pattern.sub(shorten, text), replaced

    def short_argument(self, argument: str) -> str:
        """An `argument` of a command line; of a path in it, the last part alone."""
        option, equals, value = argument.rpartition("=")
        if equals and not option.startswith("--"):
            option, equals, value = "", "", argument
        is_path = "/" in value or "\\" in value
        if not is_path or not _names_a_file(value):
            return argument
        return f"{option}{equals}{self._last_part(value)}"

    def names_user_in(self, text: str) -> bool:
        """Whether `text` has the user's name as a word of its own."""
        if self.user in SHARED_ACCOUNTS:
            return False
        return re.search(rf"(?<!\w){re.escape(self.user)}(?!\w)", text) is not None

    def _last_part(self, path: str) -> str:
        """The last part of `path`; of the home folder, whose name is the user's, another word."""
        # Elsewhere than on Windows a backslash is part of a name, or Markdown's escape before it.
        separators = "/" if path.startswith(("/", "~", "file:")) else "/\\"
        parts = re.split(f"[{re.escape(separators)}]", path.rstrip("/\\"))
        name = parts[-1].removeprefix("~")
        return HOME if name in ("", self.user, self._home.name) else name

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        tops = {*KNOWN_FOLDERS, *FURTHER_FOLDERS, *_top_folders()} - SYSTEM_FOLDERS
        starts = [
            # Longest first, since an inner folder may have a space in its name.
            *(
                re.escape(text) + _END
                for text in sorted(self._own(), key=len, reverse=True)
            ),
            r"file://(?=/)",
            rf"/(?:{'|'.join(map(re.escape, sorted(tops)))})(?=[/\\])",
            r"[A-Za-z]:(?=[/\\])(?!//)",
            rf"~{_PART}(?=/)",
            r"~(?=/)",
        ]
        # A backslash that JSON doubles, or that Markdown puts before an underscore.
        return re.compile(rf"{_START}(?:{'|'.join(starts)})(?:[/\\]+{_PART})*[/\\]*")

    def _own(self) -> Iterator[str]:
        for folder in (
            self._home,
            Path.cwd(),
            Path(tempfile.gettempdir()),
            *self._folders,
        ):
            # The root of the file system begins every path, and many names.
            if len(folder.parts) > 1:
                yield str(folder)


def _names_a_file(value: str) -> bool:
    path = PurePath(value)
    if path.is_absolute() or value.startswith(("~", "..")):
        return True
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # such as a name that is too long
        return False


def _top_folders() -> list[str]:
    try:
        return [path.name for path in Path("/").iterdir() if path.is_dir()]
    except OSError:
        return []


def _user_name(home: Path) -> str:
    try:
        return getpass.getuser()
    except (
        OSError,
        KeyError,
        ImportError,
    ):  # an account without a name, as in containers
        return home.name
