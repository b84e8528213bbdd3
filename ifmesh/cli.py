"""The command `ifmesh`.  A command is imported when it is asked for, and heavy things inside it: each process of a mesh is one command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module

import click

from ifmesh import exits
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError, Misconfigured

CODES = """\b
Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 wrong configuration, 4 no mesh answers, it is not ready or full,
5 the job failed, 6 some of several failed, 130 interrupted.
"""


COMMANDS: Mapping[str, str] = {
    "up": "cli_up",
    "down": "cli_up",
    "plan": "cli_plan",
    "pull": "cli_pull",
    "submit": "cli_submit",
    "proceed": "cli_candidates",
    "encode": "cli_submit",
    "show": "cli_jobs",
    "cancel": "cli_jobs",
    "demo": "cli_jobs",
    "ps": "cli_mesh",
    "logs": "cli_mesh",
    "coordinator": "cli_mesh",
    "worker": "cli_mesh",
    "keys": "cli_keys",
    "invite": "cli_invite",
    "join": "cli_invite",
    "doctor": "cli_doctor",
    "journal": "cli_journal",
    "bench": "cli_bench",
    "verify": "cli_verify",
    "chaos": "cli_chaos",
    "completion": "cli_completion",
    "remote": "cli_remote",
}
"""In which module each is, under its own name; in the order in which one needs them."""


class Commands(click.Group):
    """All of them, each imported when it is asked for: all together take 0.1 s, and most processes of a mesh need one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f"ifmesh.{COMMANDS[cmd_name]}"), cmd_name)
        return found


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print("ifmesh", version("ifmesh"))
        except PackageNotFoundError:  # run from a checkout that is not installed
            print("ifmesh (not installed)")
        ctx.exit()


@click.group(cls=Commands, epilog=CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Serve cascaded diffusion models: each stage its own process, tensors over ZeroMQ, no request lost.

    \b
    ifmesh demo                              everything once, from prompt to pictures
    ifmesh up --toy --detach --wait          a mesh without models, in the background
    ifmesh submit "a large yellow star on a blue background" -o star.png
    ifmesh ps                                what runs, and where
    ifmesh down                              finish what is under way, and end
    """


def exit_code(error: BaseException) -> int:
    """Whose fault it was, for the shell."""
    match error:
        case BadRequest():
            return exits.USAGE
        case Misconfigured():
            return exits.CONFIGURATION
        case Lost() | MeshBusy():
            return exits.UNREACHABLE
        case JobFailed() | DeadlineExceeded() | JobCancelled():
            return exits.JOB_FAILED
        case _:
            return exits.FAILURE


def main(arguments: list[str] | None = None) -> None:
    """Run the command and end the process.  Expected errors are one line on stderr; a traceback is a bug of ours."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """The same, but returns the exit code."""
    from ifmesh.screen import say

    try:
        ended = cli.main(arguments, prog_name="ifmesh", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return exits.USAGE
    except click.ClickException as error:
        say(f"ifmesh: {error.format_message()}", "red")
        return exits.FAILURE
    except (click.Abort, KeyboardInterrupt):
        say("ifmesh: interrupted")
        return exits.INTERRUPTED
    except MeshError as error:
        say(f"ifmesh: {error}", "red")
        return exit_code(error)
    except BrokenPipeError:  # whoever read our output has gone; what is left in the buffer has no reader either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILURE
    except OSError as error:
        say(f"ifmesh: {error.filename + ': ' if error.filename else ''}{error.strerror or error}", "red")
        return exits.FAILURE
    return ended if isinstance(ended, int) else exits.OK
