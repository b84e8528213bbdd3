"""The command `ifmesh`.  Heavy things are imported inside the commands: `ifmesh --help` answers in about 0.3 s."""

from __future__ import annotations

import os
import sys

import click

from ifmesh import (
    cli_bench,
    cli_candidates,
    cli_chaos,
    cli_completion,
    cli_doctor,
    cli_jobs,
    cli_journal,
    cli_keys,
    cli_mesh,
    cli_plan,
    cli_pull,
    cli_remote,
    cli_submit,
    cli_up,
    cli_verify,
    exits,
)
from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError, Misconfigured

CODES = """\b
Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 wrong configuration, 4 no mesh answers, it is not ready or full,
5 the job failed, 6 some of several failed, 130 interrupted.
"""


class Ordered(click.Group):
    """Lists its commands in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print("ifmesh", version("ifmesh"))
        except PackageNotFoundError:  # run from a checkout that is not installed
            print("ifmesh (not installed)")
        ctx.exit()


@click.group(cls=Ordered, epilog=CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Serve cascaded diffusion models: each stage its own process, tensors over ZeroMQ, no request lost.

    \b
    ifmesh demo                              everything once, from prompt to pictures
    ifmesh up --toy --detach --wait          a mesh without models, in the background
    ifmesh submit "a red panda" -o out.png   one picture
    ifmesh ps                                what runs, and where
    ifmesh down                              finish what is under way, and end
    """


for command in (
    *(cli_up.up, cli_up.down, cli_plan.plan, cli_pull.pull),
    *(cli_submit.submit, *cli_candidates.COMMANDS, cli_submit.encode),
    *(*cli_jobs.COMMANDS, *cli_mesh.COMMANDS, *cli_keys.COMMANDS, cli_doctor.doctor, cli_journal.journal),
    *(cli_bench.bench, cli_verify.verify, cli_chaos.chaos, *cli_completion.COMMANDS, cli_remote.remote),
):
    cli.add_command(command)


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
