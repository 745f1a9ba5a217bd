"""Settings: what a field states once is what `validate`, keywords and the command line accept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import rich_click as click
from click.testing import CliRunner

from repzoo import job, verbs
from repzoo.artifact import Preprocess
from repzoo.console.options import options_of, split_options
from repzoo.errors import InputError
from repzoo.settings import (
    FINITE,
    above,
    at_least,
    between,
    fields_of,
    merge_keywords,
    same_setting,
    setting,
    validate,
)
from repzoo.training.options import TrainOptions
from repzoo.zoo.naming import CheckpointOptions

ALL_SETTINGS = (
    CheckpointOptions,
    Preprocess,
    TrainOptions,
    job.JobOptions,
    verbs.BenchOptions,
    verbs.EvaluateOptions,
    verbs.ExportOptions,
    verbs.QuantizeOptions,
    verbs.RecipeChanges,
)


@dataclass(frozen=True)
class Sample:
    """A settings class with a field of every kind."""

    count: int = setting(1, help="A count.", range=at_least(1))
    ratio: float = setting(0.5, help="A ratio.", range=between(0, 1))
    seconds: float = setting(1.0, help="A time.", range=above(0))
    budget: float = setting(0.0, help="A budget.", range=FINITE)
    limit: int | None = setting(None, help="A limit.", range=between(2, 8))
    form: str = setting("train", help="A form.", choices=("train", "deploy"))
    color: Literal["RGB", "BGR"] = setting("RGB", help="A color.")
    mean: tuple[float, float] = setting((0.0, 0.0), help="Means.", range=between(-1, 1))
    threads: tuple[int, ...] = setting((1,), help="Threads.", range=at_least(1))
    file: Path | None = setting(None, help="A file.")
    force: bool = setting(False, help="A flag.")

    def __post_init__(self) -> None:
        """Check the values."""
        validate(self, "sample")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "sample count must be an integer of at least 1; got 0"),
        ({"count": 1.5}, "sample count must be an integer of at least 1; got 1.5"),
        ({"count": True}, "sample count must be an integer of at least 1; got True"),
        ({"ratio": 1.01}, "sample ratio must be a number from 0 to 1; got 1.01"),
        ({"ratio": math.nan}, "sample ratio must be a number from 0 to 1; got nan"),
        ({"ratio": "1"}, "sample ratio must be a number from 0 to 1; got '1'"),
        ({"seconds": 0}, "sample seconds must be a number above 0; got 0"),
        ({"seconds": math.inf}, "sample seconds must be a number above 0; got inf"),
        (
            {"budget": math.nan},
            "sample budget must be a number that is finite; got nan",
        ),
        ({"limit": 9}, "sample limit must be an integer from 2 to 8; got 9"),
        ({"form": "fold"}, "sample form must be one of train, deploy; got 'fold'"),
        ({"color": "rgb"}, "sample color must be one of RGB, BGR; got 'rgb'"),
        (
            {"mean": (0.0,)},
            r"sample mean must be 2 values, each a number from -1 to 1; got \(0.0,\)",
        ),
        ({"mean": (0.0, 2.0)}, "each a number from -1 to 1"),
        (
            {"threads": (1, 0)},
            "sample threads must be a tuple, each element an integer of at least",
        ),
        ({"threads": 1}, "sample threads must be a tuple"),
        ({"file": 3}, "sample file must be a path; got 3"),
        ({"force": 1}, "sample force must be True or False; got 1"),
    ],
)
def test_validate_names_the_field_what_it_accepts_and_what_it_got(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Sample(**values)


def test_values_at_the_ends_of_a_range_are_accepted() -> None:
    sample = Sample(
        count=1, ratio=1, seconds=1e-9, limit=2, mean=(-1.0, 1.0), budget=-5
    )
    assert sample.limit == 2


def test_keywords_replace_fields_and_accept_a_single_value_for_a_tuple() -> None:
    sample = merge_keywords(Sample, Sample(count=3), {"threads": 2, "file": "a.txt"})
    assert sample == Sample(count=3, threads=(2,), file=Path("a.txt"))
    assert merge_keywords(Sample, None, {"threads": [1, 2]}).threads == (1, 2)


def test_an_unknown_keyword_offers_the_nearest_field() -> None:
    with pytest.raises(
        InputError, match="no setting of Sample is called 'thread'; did you mean"
    ):
        merge_keywords(Sample, None, {"thread": 1})


def test_options_of_another_type_are_refused() -> None:
    options: Any = {"count": 1}
    with pytest.raises(InputError, match=r"options must be Sample\(\.\.\.\); got dict"):
        merge_keywords(Sample, options, {})


def test_a_value_that_is_named_twice_is_refused() -> None:
    assert Sample(mean=(0.5, 0.5)).mean == (0.5, 0.5)
    with pytest.raises(InputError, match="threads names 2 twice; name each value once"):
        Sample(threads=(2, 1, 2))


def test_a_field_can_be_stated_like_that_of_another_class() -> None:
    @dataclass(frozen=True)
    class Other:
        count: int = same_setting(Sample, "count")

    assert fields_of(Other)[0].setting == fields_of(Sample)[0].setting
    assert Other().count == 1


def parse(*arguments: str) -> Any:
    """The Sample that these command-line options give, or the output where they are refused."""
    parsed: list[Sample] = []

    @click.command()
    @options_of(Sample)
    def command(**values: Any) -> None:
        sample, rest = split_options(Sample, values)
        assert rest == {}
        parsed.append(sample)

    result = CliRunner().invoke(command, arguments)
    return parsed[0] if result.exit_code == 0 else result.output


def test_command_line_options_have_the_defaults_of_the_fields() -> None:
    assert parse() == Sample()


def test_command_line_options_are_read_by_the_types_of_the_fields() -> None:
    arguments = [
        "--count",
        "4",
        "--mean",
        "0.5",
        "-0.5",
        "--threads",
        "1,2",
        "--threads",
        "3",
    ]
    sample = parse(
        *arguments, "--file", "a.txt", "--force", "--limit", "3", "--form", "deploy"
    )
    assert sample == Sample(
        count=4,
        mean=(0.5, -0.5),
        threads=(1, 2, 3),
        file=Path("a.txt"),
        force=True,
        limit=3,
        form="deploy",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--count", "0"),
        ("--ratio", "nan"),
        ("--seconds", "0"),
        ("--seconds", "inf"),
        ("--budget", "nan"),
        ("--limit", "9"),
        ("--form", "fold"),
        ("--color", "rgb"),
        ("--mean", "0", "2"),
        ("--threads", "1,0"),
    ],
)
def test_the_command_line_refuses_what_validate_refuses(
    arguments: tuple[str, ...],
) -> None:
    output = parse(*arguments)
    assert isinstance(output, str)
    assert arguments[0] in output


@pytest.mark.parametrize("kind", ALL_SETTINGS, ids=lambda kind: str(kind.__name__))
def test_every_settings_class_accepts_its_defaults_and_has_help_for_every_field(
    kind: Any,
) -> None:
    kind()
    for field in fields_of(kind):
        assert field.setting.help.endswith((".", "]")), field.name
