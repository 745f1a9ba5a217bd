"""What a person sees in a terminal: progress, --quiet, what to type next, completion, NO_COLOR."""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console
import rich_click as click

from repzoo.artifact import Artifact
from repzoo.cli import cli
from repzoo.console import next_step, screen, stages
from repzoo.verbs import EvaluateOptions

Run = Callable[..., Any]


def suggestion(err: str) -> list[str]:
    """The arguments of the command in the last line of stderr, without `repzoo`."""
    last = err.splitlines()[-1]
    assert last.startswith("next: repzoo "), err
    return shlex.split(last.removeprefix("next: "))[1:]


# Progress


def test_amounts_rates_and_durations_are_short() -> None:
    assert [stages.amount(n) for n in (0, 720, 45_200_000, 3.2e9)] == [
        "0",
        "720",
        "45.2M",
        "3.2G",
    ]
    assert [stages.rate(n) for n in (None, 0.0, 0.4, 3.14, 72.3, 2.5e6)] == [
        "",
        "",
        "2.5 s each",
        "3.1/s",
        "72/s",
        "2.5M/s",
    ]
    assert [stages.duration(s) for s in (0.4, 7, 72, 3727)] == [
        "0:00",
        "0:07",
        "1:12",
        "1:02:07",
    ]


def bars_of(calls: list[tuple[str, int, int]]) -> list[str]:
    """The lines that the bars show after `calls` of progress."""
    terminal = rich.console.Console(file=io.StringIO(), force_terminal=True, width=80)
    bars = stages.Bars(terminal)
    for call in calls:
        bars(*call)
    shown = io.StringIO()
    # Beside the terminal, which would draw its bars around them.
    rich.console.Console(file=shown, width=80).print(bars._progress.get_renderable())
    bars.close()
    return shown.getvalue().splitlines()


def test_a_bar_shows_how_much_is_done_and_fits_eighty_columns() -> None:
    (line,) = bars_of(
        [("a stage with a very long name, of a tool\n", 0, 7), ("b", 3, 3)]
    )
    assert line.startswith("a stage with a very long name, ...")
    assert "0/7" in line
    assert len(line) <= 80


def test_a_stage_whose_end_is_unknown_ends_when_another_begins() -> None:
    lines = bars_of([("fold", 0, 0), ("prove", 0, 9), ("prove", 4, 9)])
    assert [line.split()[0] for line in lines] == ["prove"]
    assert "4/9" in lines[0]


def test_a_stage_that_begins_once_more_starts_its_time_anew() -> None:
    calls = [("calibrate", 0, 9), ("calibrate", 9, 9), ("calibrate", 2, 9)]
    (line,) = bars_of(calls)
    assert "2/9" in line


def test_lines_of_a_log_show_rate_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    lines = stages.Lines(2.0, 60.0, clock=lambda: now[0])
    lines("evaluate", 0, 1000)
    now[0] = 3.0
    lines("evaluate", 60, 1000)
    now[0] = 30.0
    lines("evaluate", 500, 1000)  # said less than a minute ago
    now[0] = 70.0
    lines("evaluate", 700, 1000)
    lines.close()
    assert capsys.readouterr().err.splitlines() == [
        "evaluate: 60 of 1000, 20/s, 0:47 left",
        "evaluate: 700 of 1000, 10/s, 0:30 left",
    ]


# --quiet


def test_every_command_takes_quiet() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        flags = [item.opts for item in command.params]
        assert flags.count(["-q", "--quiet"]) == 1, name


@pytest.mark.parametrize("before", [True, False])
def test_quiet_prints_nothing_where_the_result_is_a_file(
    run: Run, tmp_path: Path, before: bool
) -> None:
    output = tmp_path / "m.onnx"
    words = ["export", "repghostnet_050.digits", "-o", output]
    ran = run("--quiet", *words) if before else run(*words, "-q")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert Artifact.read(output).form == "train"


def test_quiet_prints_the_result_that_is_in_no_file(
    run: Run, model_file: Path, foreign_file: Path, digits_folder: Path
) -> None:
    shown = run("evaluate", model_file, "--data", digits_folder)
    quiet = run("evaluate", model_file, "--data", digits_folder, "--quiet")
    assert shown.err.startswith("data: ")
    assert (quiet.code, quiet.out, quiet.err) == (0, shown.out, "")
    # What was assumed is a note too. In the document it stays.
    image = next(digits_folder.rglob("*.png"))
    ran = run("predict", foreign_file, image, "-q", "--json")
    assert ran.err == ""
    assert "ImageNet" in ran.document["remarks"][0]


def test_quiet_still_shows_errors(run: Run, tmp_path: Path) -> None:
    ran = run("fold", tmp_path / "none.onnx", "-o", tmp_path / "o.onnx", "--quiet")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("repzoo: ")


# What to type next


def test_each_suggestion_leads_to_the_next(
    run: Run,
    small_training_file: Path,
    int8_file: Path,
    digits_folder: Path,
    tmp_path: Path,
) -> None:
    model = tmp_path / "it's a model.onnx"
    folded = tmp_path / "it's a model.deploy.onnx"
    fold = suggestion(run("export", "repghostnet_050.digits", "-o", model).err)
    assert fold == ["fold", str(model), "-o", str(folded)]
    shutil.copy(small_training_file, model)  # that of `int8_file`
    output = tmp_path / "it's a model.int8.onnx"
    data = ["--data", str(digits_folder)]
    quantize = suggestion(run(*fold, *data).err)
    assert quantize == ["quantize", str(folded), "-o", str(output), *data]
    command = next_step.after_quantize(
        str(folded), int8_file, str(digits_folder), "onnxruntime", {}
    )
    assert command is not None
    assert command[1:] == ["evaluate", str(int8_file), "--against", str(folded), *data]
    records = tmp_path / "records.jsonl"
    bench = suggestion(run(*command[1:], "--append", records).err)
    assert bench == ["bench", str(folded), str(int8_file), "--append", str(records)]
    page = suggestion(run(*bench, "--seconds", 0.01).err)
    assert page == ["page", str(records), "-o", str(tmp_path / "records.html")]
    ran = run(*page)
    assert ran.code == 0
    assert ran.out.endswith("in a browser\n")


def test_the_images_of_digits_are_suggested_where_they_are_there(
    trained: Artifact,
) -> None:
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    command = next_step.after_fold("m.onnx", trained, Path("m.train.onnx"), None, {})
    assert command is not None
    assert command[2:] == ["m.train.onnx", "-o", "m.int8.onnx", "--data", "digits"]


def test_a_model_of_another_tool_keeps_the_options_it_needs(
    run: Run, foreign_file: Path
) -> None:
    stated = {"size": 32, "mean": (0.5, 0.5, 0.5), "color": None}
    artifact = Artifact.read(foreign_file)
    command = next_step.after_fold(
        str(foreign_file), artifact, foreign_file, None, stated
    )
    assert command is not None
    timed = [str(foreign_file), str(foreign_file)]
    options = ["--size", "32x32", "--mean", "0.5", "0.5", "0.5"]
    assert command[1:] == ["bench", *timed, *options]
    assert run(*command[1:], "--seconds", 0.01).code == 0


def test_suggestions_are_safe_to_paste() -> None:
    command = next_step.after_quantize(
        "-f;rm x.onnx", Path("--o $(x).onnx"), "-data", "openvino", {"size": (48, 192)}
    )
    assert command is not None
    assert shlex.split(shlex.join(command)) == command
    assert command == [
        "repzoo",
        "evaluate",
        "./--o $(x).onnx",
        "--against",
        "./-f;rm x.onnx",
        "--data",
        "./-data",
        "--engine",
        "openvino",
        "--size",
        "48x192",
    ]


def test_nothing_is_suggested_where_nothing_is_known_to_work(
    run: Run, tmp_path: Path
) -> None:
    nothing: dict[str, Any] = {}
    # Only the results of another tool: there is no model to time.
    assert next_step.after_evaluate((), None, EvaluateOptions(), None, nothing) is None
    assert next_step.after_records(None) is None
    # A terminal would obey this name.
    odd = tmp_path / "\x1b[2Jm.onnx"
    assert "next: " not in run("export", "repghostnet_050.digits", "-o", odd).err
    for flag in ("--json", "--quiet"):
        ran = run("export", "repghostnet_050.digits", "-o", tmp_path / "m.onnx", flag)
        assert "next: " not in ran.err


# Completion


def completed(run: Run, patch: pytest.MonkeyPatch, line: str) -> list[str]:
    """What bash is offered for the last word of `line`."""
    patch.setenv("_REPZOO_COMPLETE", "bash_complete")
    patch.setenv("COMP_WORDS", line)
    patch.setenv("COMP_CWORD", str(line.count(" ")))
    ran = run()
    patch.undo()
    lines: list[str] = ran.out.splitlines()
    return lines


def test_commands_options_models_and_choices_are_completed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line, expected in {
        "repzoo qu": ["plain,quantize"],
        "repzoo quantize --fin": ["plain,--finetune-epochs"],
        "repzoo fold repghostnet_050.d": ["plain,repghostnet_050.digits"],
        "repzoo fold m": ["file,m"],
        "repzoo evaluate m.onnx --data di": ["plain,digits"],
        "repzoo evaluate m.onnx --data ": ["dir,"],
        "repzoo quantize --precision f": ["plain,fp16"],
        "repzoo completion z": ["plain,zsh"],
    }.items():
        assert completed(run, monkeypatch, line) == expected, line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(run: Run, shell: str) -> None:
    ran = run("completion", shell)
    assert ran.code == 0
    assert f"_REPZOO_COMPLETE={shell}_complete" in ran.out
    assert run("completion", shell, "--json").document["script"] == ran.out[:-1]


def test_bash_reads_its_script(run: Run) -> None:
    script = run("completion", "bash").out
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_another_shell_is_refused(run: Run) -> None:
    ran = run("completion", "tcsh")
    assert ran.code == 2
    assert "'tcsh'" in ran.err


# A real terminal


def in_terminal(arguments: list[str], **environment: str) -> str:
    """What the command prints on a terminal of 80 columns."""
    parent, child = pty.openpty()
    own = {"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color", **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "repzoo", *arguments],
        stdout=child,
        stderr=child,
        env={**os.environ, **own},
    )
    os.close(child)
    parts = []
    # Linux ends a terminal whose other side is closed with an error.
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    os.close(parent)
    assert process.wait() == 0
    return b"".join(parts).decode()


def test_a_terminal_shows_bars_and_ends_with_what_to_type_next(
    model_file: Path, tmp_path: Path
) -> None:
    command = ["fold", str(model_file), "-o", str(tmp_path / "d.onnx")]
    shown = in_terminal(command, NO_COLOR="1")
    assert "prove folded nodes" in shown
    assert shown.splitlines()[-1].startswith("next: repzoo ")
    # SGR 30 to 49 and 90 to 107 are colors; bold and dim are not.
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d[;m]", shown)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["list"]])
def test_a_closed_pipe_ends_without_a_word(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        ran = subprocess.run(
            [sys.executable, "-m", "repzoo", *arguments],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (ran.returncode != 0, ran.stderr) == (True, b"")


# A screen


def test_notes_that_do_not_fit_a_screen_are_counted() -> None:
    shown = ["a line"] * 16
    long = "word " * 30  # two lines at 80 columns, with "note: "
    assert screen.fitting_notes(shown, [long], "card.md") == [long]
    assert screen.fitting_notes(shown, ["a", long, long, "b"], "card.md") == [
        "a",
        long,
        "2 more notes in card.md",
    ]
    full = ["a line"] * 30
    assert screen.fitting_notes(full, [long, "b"], "--json") == [
        "word " * 14 + "...",
        "2 notes in --json",
    ]
    assert screen.fitting_notes(full, ["a", "b", "c"], "--json") == [
        "a",
        "2 more notes in --json",
    ]
