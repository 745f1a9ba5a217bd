"""The command completion: what a shell needs to complete commands, options, models and files."""

from __future__ import annotations

import rich_click as click
from click.shell_completion import get_completion_class

from repzoo.console.commands.shared import json_option
from repzoo.console.output import Console, View

PROGRAM = "repzoo"
# click's own name of the variable by which the script asks `repzoo` for what may come next.
VARIABLE = "_REPZOO_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
@click.pass_context
def completion(context: click.Context, shell: str, as_json: bool) -> None:
    """Print the script with which SHELL completes the words of repzoo.

    bash: add  eval "$(repzoo completion bash)"  to ~/.bashrc

    zsh: add  eval "$(repzoo completion zsh)"  to ~/.zshrc

    fish: repzoo completion fish > ~/.config/fish/completions/repzoo.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click has all of SHELLS
    group = context.find_root().command
    script = kind(group, {}, PROGRAM, VARIABLE).source()
    if as_json:
        Console(as_json).show(View({"shell": shell, "script": script}))
    else:
        # As it is: a view would be wrapped at the width of the terminal.
        click.echo(script)
