"""Errors of repzoo. Each message says what was expected, what was found, and what to do.

RepzooError                 exit 1  a defect in repzoo if it is none of the following
├── InputError              exit 2  bad input or usage
│   ├── MissingExtra        exit 2  an optional dependency is not installed
│   └── NotFinite           exit 2  a model's outputs are NaN or infinite
├── CertificateError        exit 3  the folded graph is not proven equal
└── GateError               exit 4  an accuracy or latency budget is not met
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

# Exit codes as shells give them: 128 + the signal.
INTERRUPTED = 130
PIPE_CLOSED = 141


class RepzooError(Exception):
    """Base class of all errors that repzoo raises on purpose."""

    exit_code = 1


class InputError(RepzooError):
    """An input that cannot be used: a file, a folder, a name, a setting."""

    exit_code = 2


class AssumedPreprocess(UserWarning):
    """Some preprocessing was assumed, because neither the file nor the user states it."""


class MissingExtra(InputError):
    """An optional dependency is not installed. The message says what to type."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs an optional dependency that is not installed; type: "
            f"{_pip()} install 'repzoo[{extra}]'"
        )
        self.extra = extra


def _pip() -> str:
    """The pip of this environment: without `activate`, `pip` alone is that of another one."""
    pip = Path(sys.executable).with_name("pip")
    found = shutil.which("pip")
    if found and Path(found).parent == pip.parent:
        return "pip"
    if not pip.exists():
        return f"{shlex.quote(sys.executable)} -m pip"
    folder = Path.cwd()
    return shlex.quote(
        str(pip.relative_to(folder) if pip.is_relative_to(folder) else pip)
    )


class NotFinite(InputError):
    """A model gives outputs that are NaN or infinite, so it has no accuracy."""


class CertificateError(RepzooError):
    """The certificate of a fold failed: the two graphs differ by more than the bound."""

    exit_code = 3


class GateError(RepzooError):
    """A budget (accuracy drop, latency) is not met."""

    exit_code = 4


def first_line(error: Exception) -> str:
    """The first line of a foreign error, for one of our sentences; its class if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
