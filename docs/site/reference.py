"""The pages of the reference, made from the code: commands, Python API, file formats."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import click
from docs.site.markdown import code, docstring, escape, from_docstring, table

import repzoo
from repzoo import artifact, cli
from repzoo.graph.certificate.certify import Certificate
from repzoo.measure.record import RESULT_KINDS, Record
from repzoo.quant.network.scheme import QuantScheme
from repzoo.settings import Field, fields_of
from repzoo.training.recipe import Recipe
from repzoo.vendors import recipes as vendor_recipes
from repzoo.zoo import catalog

WIDTH = 88  # columns of a signature on one line
TORCH = Path(inspect.getsourcefile(repzoo) or "").parent / "torch"
# Where the functions of repzoo.torch are. They are parsed: torch need not be installed.
TORCH_FUNCTIONS = {"fold": "fold.py", "export": "to_artifact.py"}


def command_line() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    parts = [
        "# Command line",
        "Every command has `--help`. Most have `--json`: one JSON document on stdout. Notes and "
        "progress go to stderr.",
        table(
            ["Exit code", "Meaning"],
            [
                ("0", "done"),
                ("1", "a defect in repzoo"),
                ("2", "bad input or usage"),
                ("3", "the certificate failed: no file was written"),
                ("4", "the accuracy budget was not met: no file was written"),
            ],
        ),
    ]
    for group, names in cli.COMMAND_GROUPS.items():
        parts.append(f"## {group}")
        parts += [_command(name) for name in names]
    return "\n\n".join(parts) + "\n"


def _command(name: str) -> str:
    with click.Context(cli.cli, info_name="repzoo") as group:
        command = cli.cli.get_command(group, name)
        if command is None:
            raise KeyError(f"the group of commands names {name}, which does not exist")
        with click.Context(command, info_name=name, parent=group) as context:
            usage = " ".join(command.collect_usage_pieces(context))
            rows = list(_options(command, context))
    help_text = escape(inspect.cleandoc(command.help or ""))
    parts = [f"### repzoo {name}", help_text, f"```\nrepzoo {name} {usage}\n```"]
    if rows:
        parts.append(table(["Option", "Default", "Meaning"], rows))
    return "\n\n".join(parts)


def _options(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str, str, str]]:
    for option in command.params:
        if not isinstance(option, click.Option) or option.hidden:
            continue
        flags = ", ".join(code(flag) for flag in (*option.opts, *option.secondary_opts))
        if not option.is_flag:
            flags += " " + code(option.make_metavar(context))
        default = "required" if option.required else ""
        if option.show_default and _states_something(option.default):
            default = code(_plain(option.default))
        yield flags, default, escape(option.help or "")


def _states_something(default: Any) -> bool:
    return default is not False and default not in (None, "", ())


def _plain(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return str(value)


def python() -> str:
    """Every public name of `repzoo` and `repzoo.torch`, from signatures and docstrings."""
    names = [name for name in repzoo.__all__ if name not in ("torch", "__version__")]
    values = {name: getattr(repzoo, name) for name in names}
    sections: dict[str, list[str]] = {
        "Functions": [],
        "PyTorch": _torch_functions(),
        "Settings": [],
        "Classes": [],
        "Errors": [],
    }
    for name, value in values.items():
        sections[_section(value)].append(_entry(name, value))
    parts = [
        "# Python",
        "`import repzoo` is fast and needs no torch. A setting is given as a keyword "
        '(`repzoo.quantize(model, "photos/", max_drop=0.5)`), or as an object (`options=`).',
    ]
    for title, entries in sections.items():
        parts += [f"## {title}", *entries]
    return "\n\n".join(parts) + "\n"


def _section(value: Any) -> str:
    if inspect.isfunction(value):
        return "Functions"
    if issubclass(value, Exception):
        return "Errors"
    return "Settings" if _settings(value) else "Classes"


def _settings(kind: Any) -> tuple[Field, ...]:
    """The fields of a settings dataclass; none for any other class."""
    # Only settings have metadata. `fields_of` resolves type hints, which other dataclasses may
    # import for type checkers only.
    if not dataclasses.is_dataclass(kind):
        return ()
    has_settings = any(field.metadata for field in dataclasses.fields(kind))
    return fields_of(cast(type[Any], kind)) if has_settings else ()


def _entry(name: str, value: Any) -> str:
    if inspect.isfunction(value):
        return _function(f"repzoo.{name}", _parsed(value), 3)
    parts = [f"### repzoo.{name}", docstring(value)]
    settings = _settings(value)
    if settings:
        rows = []
        for field in settings:
            default = (
                "" if field.default is dataclasses.MISSING else repr(field.default)
            )
            rows.append((code(field.name), code(default), escape(field.setting.help)))
        parts.append(table(["Setting", "Default", "Meaning"], rows))
    elif dataclasses.is_dataclass(value):
        parts.append(_fields(value))
    if not issubclass(value, Exception):
        parts += _methods(name, value)
    return "\n\n".join(parts)


def _methods(name: str, kind: type) -> list[str]:
    """The public methods and properties of a class and of those it is made of."""
    shown: dict[str, str] = {}
    for owner in kind.__mro__:
        if not owner.__module__.startswith("repzoo"):
            continue
        for node in _parsed(owner).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            if node.name not in shown:
                shown[node.name] = _function(f"{name}.{node.name}", node, 4)
    return list(shown.values())


def _function(title: str, node: ast.FunctionDef, level: int) -> str:
    text = from_docstring(ast.get_docstring(node) or "")
    decorators = [ast.unparse(item) for item in node.decorator_list]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    short = title.rpartition(".")[2]
    if "property" in decorators:
        signature = f"{short}: {result.removeprefix(' -> ')}"
    else:
        signature = _signature(short, _parameters(node.args), result)
    heading = "#" * level + " " + title
    return f"{heading}\n\n```python\n{signature}\n```\n\n{text}"


def _signature(name: str, parameters: list[str], result: str) -> str:
    line = f"{name}({', '.join(parameters)}){result}"
    if len(line) <= WIDTH:
        return line
    body = "".join(f"    {parameter},\n" for parameter in parameters)
    return f"{name}(\n{body}){result}"


def _parameters(arguments: ast.arguments) -> list[str]:
    """Each parameter as the source has it, but `self` and `cls`."""
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = len(positional) - len(arguments.defaults)
    defaults: list[ast.expr | None] = [*[None] * missing, *arguments.defaults]
    texts: list[str] = []
    for argument, default in zip(positional, defaults, strict=True):
        if argument.arg not in ("self", "cls"):
            texts.append(_parameter(argument, default))
    if arguments.vararg:
        texts.append("*" + ast.unparse(arguments.vararg))
    elif arguments.kwonlyargs:
        texts.append("*")
    for argument, default in zip(
        arguments.kwonlyargs, arguments.kw_defaults, strict=True
    ):
        texts.append(_parameter(argument, default))
    if arguments.kwarg:
        texts.append("**" + ast.unparse(arguments.kwarg))
    return texts


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    text = ast.unparse(argument)
    return text if default is None else f"{text} = {ast.unparse(default)}"


def _parsed(value: Any) -> Any:
    """The definition of a function or a class as a syntax tree."""
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _torch_functions() -> list[str]:
    entries: list[str] = []
    for name, file in TORCH_FUNCTIONS.items():
        for node in ast.parse((TORCH / file).read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == name:
                entries.append(_function(f"repzoo.torch.{name}", node, 3))
    return entries


def file_formats() -> str:
    """What repzoo writes and reads: metadata, Records, schemes, catalog, recipes, tool chains."""
    parts = [
        "# Files",
        "All of it is JSON or TOML. The fields below are those of the dataclasses that read and "
        "write them. Reading is strict: a field that is missing or of another type is an error "
        "that names it.",
        "## Metadata of an ONNX file",
        from_docstring(inspect.getdoc(artifact) or "").partition("\n\n")[2],
        _dataclass("repzoo.preprocess", artifact.Preprocess),
        _dataclass("repzoo.steps: a list of", artifact.Step),
        _dataclass("repzoo.certificate", Certificate),
        "## Records",
        "`results/*.jsonl`, and `--records FILE` of the commands: one JSON object a line. "
        "`kind` says which result stands in `values`.",
        _dataclass("Record", Record),
        *[_dataclass(f"kind: {kind}", result) for result, kind in RESULT_KINDS.items()],
        "## Schemes",
        "`--scheme FILE.toml`: one table, whose name is the scheme's.",
        _dataclass("Scheme", QuantScheme),
        _presets("quant.network", "schemes.toml", ["engine", "about"]),
        "## Catalog",
        "`zoo/catalog.toml`: the models that `repzoo list` shows.",
    ]
    for kind in (
        catalog.ModelSpec,
        catalog.Figure,
        catalog.FigureSource,
        catalog.Checkpoint,
    ):
        parts.append(_dataclass(kind.__name__, kind))
    parts += [
        "## Recipes",
        "`repzoo train --recipe NAME`, or a TOML file with one such table.",
        _dataclass("Recipe", Recipe),
        _presets("training", "recipes.toml", ["epochs", "about"]),
        "## Tool chains",
        "`vendors/toolchains.toml`: how a vendor's tools are installed, each in its own "
        "environment.",
        _dataclass("Tool chain", vendor_recipes.Recipe),
        _dataclass("Install step", vendor_recipes.InstallStep),
    ]
    return "\n\n".join(parts) + "\n"


def _dataclass(title: str, kind: type) -> str:
    return f"### {title}\n\n{docstring(kind)}\n\n{_fields(kind)}"


def _fields(kind: Any) -> str:
    rows: list[tuple[str, str, str]] = []
    for field in dataclasses.fields(kind):
        if field.name.startswith("_"):
            continue
        default = "" if field.default is dataclasses.MISSING else repr(field.default)
        rows.append((code(field.name), code(str(field.type)), code(default)))
    return table(["Field", "Type", "Default"], rows)


def _presets(package: str, file: str, columns: list[str]) -> str:
    text = files("repzoo").joinpath(*package.split("."), file).read_text("utf-8")
    rows: list[list[str]] = []
    for name, entry in tomllib.loads(text).items():
        rows.append([code(name), *[escape(str(entry.get(key, ""))) for key in columns]])
    return table(["Preset", *columns], rows)


PAGES = {
    "reference/command-line.md": command_line,
    "reference/python.md": python,
    "reference/files.md": file_formats,
}
