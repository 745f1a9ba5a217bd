"""Progress of a command's stages on stderr: bars on a terminal, lines anywhere else.

Both are called as a `repzoo.progress.Progress` is. Both show how many units a second are done, and
how long the rest takes at that rate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import rich.console
import rich.progress
import rich_click as click
from rich.text import Text

from repzoo.printable import one_line

# Longer names of stages are cut, so that a bar fits 80 columns.
STAGE_COLUMNS = 34
BAR_COLUMNS = 12


def amount(units: float) -> str:
    """A number of units in at most six characters, such as "720", "45.2M" of bytes."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if units >= size:
            return f"{units / size:.1f}{letter}"
    return f"{units:.0f}"


def rate(units_per_second: float | None) -> str:
    """Units a second, or the seconds of one unit where these are long; "" if not known."""
    if not units_per_second:
        return ""
    if units_per_second < 1:
        return f"{1 / units_per_second:.1f} s each"
    if units_per_second < 10:
        return f"{units_per_second:.1f}/s"
    return f"{amount(units_per_second)}/s"


def duration(seconds: float) -> str:
    """Minutes and seconds, such as "0:07"; from an hour on with hours, "1:02:07"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minutes}:{second:02}"


class _Rate(rich.progress.ProgressColumn):
    """Units per second, such as images."""

    def render(self, task: rich.progress.Task) -> Text:
        """The rate, or nothing while it is unknown."""
        return Text(rate(task.finished_speed or task.speed))


class _Count(rich.progress.ProgressColumn):
    """Units that are done, of how many."""

    def render(self, task: rich.progress.Task) -> Text:
        """Nothing where the total is unknown."""
        if task.total is None:
            return Text("")
        return Text(f"{amount(task.completed)}/{amount(task.total)}")


class _Time(rich.progress.ProgressColumn):
    """The time that is left; where that is unknown, the time since the stage began."""

    def render(self, task: rich.progress.Task) -> Text:
        """Such as "0:12 left"."""
        left = task.time_remaining
        if left and not task.finished:
            return Text(f"{duration(left)} left")
        return Text(duration(task.elapsed or 0))


class Bars:
    """A bar for each stage that goes on. A stage that is over leaves its line, if it has one."""

    def __init__(self, console: rich.console.Console) -> None:
        self._console = console
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=BAR_COLUMNS),
            _Count(),
            _Rate(),
            _Time(),
            console=console,
            transient=True,
        )
        self._progress.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage."""
        if stage not in self._tasks and 0 < total == done:
            # It is over: a line stays, while a bar for every epoch would fill the screen.
            self._progress.console.print(Text(one_line(stage)))
            return
        if stage not in self._tasks:
            self._start(stage, total)
        task = self._tasks[stage]
        if done < self._completed(task):
            # The stage begins once more, as calibration does for each placement.
            self._progress.reset(task, total=total or None)
        self._progress.update(task, completed=done, total=total or None)

    def close(self) -> None:
        """Clear the bars."""
        self._progress.stop()

    def _start(self, stage: str, total: int) -> None:
        """Add a bar. Stages whose end nobody reports are over when another begins."""
        for other in list(self._tasks):
            task = self._task(self._tasks[other])
            if task.total is None or task.finished:
                self._progress.remove_task(self._tasks.pop(other))
        description = one_line(stage)
        if len(description) > STAGE_COLUMNS:
            description = description[: STAGE_COLUMNS - 3] + "..."
        self._tasks[stage] = self._progress.add_task(description, total=total or None)

    def _completed(self, task: rich.progress.TaskID) -> float:
        return self._task(task).completed

    def _task(self, wanted: rich.progress.TaskID) -> rich.progress.Task:
        return next(task for task in self._progress.tasks if task.id == wanted)


@dataclass
class _Stage:
    """A stage of which lines are printed.

    first    when it was first reported, and how much of it was done by then
    printed  when its last line was printed; None before the first
    """

    started: float
    first_done: int
    printed: float | None = None
    line: str = ""


class Lines:
    """Progress where stderr is no terminal: a line for each stage of a command that takes long.

    quiet_seconds   a command that ends within this time prints nothing
    repeat_seconds  a stage that goes on is repeated after this time, so that a log shows a command
                    that is alive
    """

    def __init__(
        self,
        quiet_seconds: float,
        repeat_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet_seconds = quiet_seconds
        self._repeat_seconds = repeat_seconds
        self._clock = clock
        self._started = clock()
        self._stages: dict[str, _Stage] = {}
        self._current: _Stage | None = None
        # The timer below reports from a thread of its own.
        self._lock = threading.Lock()
        # A stage may report nothing until it ends.
        self._timer = threading.Timer(quiet_seconds, self._print_if_due)
        # A command that has failed must not wait for it.
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, name: str, done: int, total: int) -> None:
        """Note the progress, and print it if it is due."""
        with self._lock:
            stage = self._stages.get(name)
            if stage is None or done < stage.first_done:
                printed = stage.printed if stage else None
                stage = _Stage(self._clock(), done, printed)
                self._stages[name] = stage
            stage.line = self._line(name, stage, done, total)
            self._current = stage
        self._print_if_due()

    def close(self) -> None:
        """Print nothing more."""
        self._timer.cancel()

    def _line(self, name: str, stage: _Stage, done: int, total: int) -> str:
        name = one_line(name)
        if not total:
            return f"{name}: ..."
        # Of a stage that is over when it is first shown, its name says all.
        if done == total and stage.printed is None:
            return name
        line = f"{name}: {amount(done)} of {amount(total)}"
        seconds = self._clock() - stage.started
        speed = (done - stage.first_done) / seconds if seconds > 0 else 0.0
        if not speed:
            return line
        return f"{line}, {rate(speed)}, {duration((total - done) / speed)} left"

    def _print_if_due(self) -> None:
        now = self._clock()
        with self._lock:
            stage = self._current
            if stage is None or now - self._started < self._quiet_seconds:
                return
            if stage.printed is not None and now - stage.printed < self._repeat_seconds:
                return
            stage.printed = now
            click.echo(stage.line, err=True)
