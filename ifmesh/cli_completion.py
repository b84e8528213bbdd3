"""What the shell offers when one presses Tab: job ids and stages; and the command that teaches it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ifmesh import cli_options as options

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VARIABLE = "_IFMESH_COMPLETE"  # click answers instead of running a command where this is set
SOON = 1.0  # seconds for the mesh to answer: whoever presses Tab waits for it
INSTALL = {
    "bash": 'eval "$(ifmesh completion bash)"   # this line into ~/.bashrc',
    "zsh": 'eval "$(ifmesh completion zsh)"   # this line into ~/.zshrc, behind compinit',
    "fish": "ifmesh completion fish > ~/.config/fish/completions/ifmesh.fish",
}


def jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The unfinished jobs of the mesh that runs; nothing where there is none, or anything is wrong: it would be said on the prompt."""
    from click.shell_completion import CompletionItem

    try:
        with ctx.scope(cleanup=False):
            config, _ = options.configuration(ctx.params.get("config_file"))
        with options.client(config, timeout=SOON) as client:
            rows = client.status().jobs
    except Exception:
        return []
    return [CompletionItem(row.job, help=_line(f"{row.stage} {row.prompt}")) for row in rows if row.job.startswith(incomplete)]


def _line(text: str) -> str:
    """The scripts read lines: whatever else a prompt holds would be taken for offers."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def stages(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """`I=`, `II=`, `x4=`, also behind a comma."""
    from click.shell_completion import CompletionItem

    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{name}=") for name in ("I", "II", "x4") if f"{name}=".startswith(last)]


@click.command(short_help="Teach the shell to complete commands.")
@click.argument("shell", type=click.Choice(tuple(INSTALL)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.  It completes commands, options, files, and the ids of the jobs that run.

    \b
    eval "$(ifmesh completion bash)"      # bash: for this shell; for all: this line into ~/.bashrc
    eval "$(ifmesh completion zsh)"       # zsh: the same, into ~/.zshrc
    ifmesh completion fish > ~/.config/fish/completions/ifmesh.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(ctx.find_root().command, {}, "ifmesh", VARIABLE).source()
    # No blank behind "I=": a number is to follow.
    script = script.replace("COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace")
    first, rest = script.split("\n", 1) if script.startswith("#compdef") else ("", script)  # zsh wants that to be the first line
    click.echo(f"{first}{first and chr(10)}# {INSTALL[shell]}\n{rest.strip()}")
