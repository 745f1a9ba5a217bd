"""The command line: `repzoo COMMAND`. The commands themselves are in `repzoo.console.commands`.

stdout carries the result (with --json: one JSON document), stderr progress and remarks.
Exit codes: 0 done, 1 defect in repzoo, 2 bad input or usage, 3 certificate failed, 4 gate not met.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import rich_click as click

from repzoo import __version__
from repzoo.artifact import Preprocess
from repzoo.console.output import QUIET, assumptions, is_quiet, print_aside
from repzoo.errors import (
    INTERRUPTED,
    PIPE_CLOSED,
    AssumedPreprocess,
    InputError,
    RepzooError,
)
from repzoo.printable import one_line
from repzoo.settings import fields_of

# Each command's module in repzoo.console.commands and its name there.
COMMANDS = {
    "list": ("catalog", "list_models"),
    "info": ("catalog", "info"),
    "match": ("match", "match"),
    "engines": ("catalog", "engines"),
    "count": ("catalog", "count"),
    "download": ("catalog", "download"),
    "export": ("transform", "export"),
    "convert": ("transform", "convert"),
    "fold": ("transform", "fold"),
    "embed-input": ("transform", "embed_input"),
    "quantize": ("transform", "quantize"),
    "harden": ("targets", "harden"),
    "pack": ("targets", "pack"),
    "toolchains": ("targets", "toolchains"),
    "import": ("targets", "import_logs"),
    "evaluate": ("measure", "evaluate"),
    "bench": ("measure", "bench"),
    "predict": ("measure", "predict"),
    "mismatch": ("measure", "mismatch"),
    "train": ("jobs", "train"),
    "card": ("jobs", "card"),
    "page": ("jobs", "page"),
    "demo": ("jobs", "demo"),
    "push": ("hub", "push"),
    "completion": ("completion", "completion"),
}


def _set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
    # The contexts of a command and of its group share `meta`.
    if value:
        context.meta[QUIET] = True
        # Read when huggingface_hub is imported.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


QUIET_OPTION = click.Option(
    ["-q", "--quiet"],
    is_flag=True,
    expose_value=False,
    callback=_set_quiet,
    # Before an option whose callback may already print a note.
    is_eager=True,
    help="Print no progress, notes or summary: only errors, and a result that is in no file.",
)


class _Group(click.RichGroup):
    """The group of all commands. It turns errors of repzoo into one sentence and an exit code.

    A command is imported when it is first asked for: `repzoo engines` need not wait for what
    `repzoo quantize` imports.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names of all commands, in sorted order."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported; None if there is none."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module, name = COMMANDS[cmd_name]
            imported = importlib.import_module(f"repzoo.console.commands.{module}")
            command: click.Command = getattr(imported, name)
            command.params.append(QUIET_OPTION)
            self.add_command(command)
            _group_options(cmd_name, command)
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; leave with the exit code of the error it raises."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except RepzooError as error:
            if error.exit_code == 1:
                raise  # a defect: the one case in which a traceback helps
            click.echo(f"repzoo: {one_line(error)}", err=True)
            sys.exit(error.exit_code)
        except MemoryError:
            click.echo(
                "repzoo: this needs more memory than there is; check the sizes in the model's "
                "graph, or give fewer or smaller images",
                err=True,
            )
            sys.exit(InputError.exit_code)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            _leave_closed_pipe()


def _leave_closed_pipe() -> NoReturn:
    """End without a word: the reader, such as `head`, has closed the pipe."""
    sys.stdout = None  # else Python complains when it flushes at exit
    sys.exit(PIPE_CLOSED)


@click.group(
    cls=_Group,
    params=[QUIET_OPTION],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="repzoo")
def cli() -> None:
    """Fold, quantize and measure light CNN classifiers, with proof.

    Start with `repzoo card`: it folds, quantizes, evaluates and times the embedded model, and
    writes its card to out/.
    """


# The order of a newcomer's questions, not of the alphabet.
COMMAND_GROUPS = {
    "The whole job": ["card", "page", "demo", "push"],
    "Models and weights": [
        "list",
        "info",
        "match",
        "download",
        "export",
        "convert",
        "train",
    ],
    "Fold and quantize": ["fold", "quantize", "embed-input"],
    "Boards and their makers' tools": ["harden", "pack", "toolchains", "import"],
    "Use and measure": ["predict", "evaluate", "bench", "count", "mismatch", "engines"],
    "The shell": ["completion"],
}


def _group_commands() -> None:
    """Let `--help` list the commands by purpose."""
    click.rich_click.COMMAND_GROUPS["repzoo"] = [
        {"name": name, "commands": commands}
        for name, commands in COMMAND_GROUPS.items()
    ]


def _group_options(name: str, command: click.Command) -> None:
    """Let `--help` of a command list the options about images in a panel of their own."""
    preprocessing = [
        f"--{field.name.replace('_', '-')}" for field in fields_of(Preprocess)
    ]
    options = [item for item in command.params if isinstance(item, click.Option)]
    flags = [item.opts[0] for item in options]
    if not set(preprocessing) <= set(flags):
        return
    own = [flag for flag in flags if flag not in preprocessing]
    click.rich_click.OPTION_GROUPS[f"repzoo {name}"] = [
        {"name": "Options", "options": [*own, "--help"]},
        {
            "name": "Preprocessing, where the model's own is not right",
            "options": preprocessing,
        },
    ]


_group_commands()


def _show_assumptions() -> None:
    """Print what was assumed about preprocessing as notes on stderr, each once."""
    others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Print the warning; the arguments are those of warnings.showwarning."""
        text = str(message)
        if not issubclass(category, AssumedPreprocess):
            others(message, category, filename, lineno, file, line)
        elif text not in assumptions():
            assumptions().append(text)
            if not is_quiet():
                print_aside(f"note: {text}")

    warnings.simplefilter("always", AssumedPreprocess)
    warnings.showwarning = show


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments`, or on the process's own; always ends in SystemExit."""
    # Pillow warns about odd but readable images; unreadable ones are counted and named.
    warnings.filterwarnings("ignore", module="PIL")
    _show_assumptions()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            cli.main(arguments, prog_name="repzoo", standalone_mode=True)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    # The help text, which is printed before a command runs.
    except BrokenPipeError:
        _leave_closed_pipe()
