"""The flags that many commands share, and how they become a Config.  Each stands for a key of ifmesh.toml."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from ifmesh.request import STAGES

if TYPE_CHECKING:
    from ifmesh.client import Client
    from ifmesh.config import Config
    from ifmesh.protocol import ServiceRow

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]
_PUT = "ifmesh.overrides"  # where the flags of this command gather, in click's meta: dotted key -> value


def put(key: str, value: object) -> None:
    """Set a key of the configuration, as a flag would."""
    click.get_current_context().meta.setdefault(_PUT, {})[key] = value


def flag(key: str, *names: str, **more: Any) -> Callable[[F], F]:
    """A flag that sets one key."""

    def store(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value is not None:
            ctx.meta.setdefault(_PUT, {})[key] = value

    return click.option(*names, expose_value=False, default=None, callback=store, **more)


def _set(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> None:
    from ifmesh.config import setting

    for text in values:
        key, value = setting(text)
        ctx.meta.setdefault(_PUT, {})[key] = value


def _copies(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> None:
    for text in values:
        stage, _, number = text.partition("=")
        if stage not in STAGES or not number.isdecimal():
            raise click.BadParameter(f"{text!r}: STAGE=N, as in stage_one=2; stages: {', '.join(STAGES)}", ctx, param)
        ctx.meta.setdefault(_PUT, {})[f"services.{stage}.copies"] = int(number)


sets = click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", expose_value=False, callback=_set, help="Any key of ifmesh.toml; repeatable."
)


def configured(f: F) -> F:
    """--config, --set and --state."""
    f = flag("mesh.state", "--state", metavar="DIR", help="State folder: journal, results, logs.")(f)
    f = sets(f)
    return click.option("--config", "config_file", type=click.Path(path_type=Path), help="ifmesh.toml to read.", expose_value=True)(f)


def coordinator(f: F) -> F:
    """--coordinator and --identity: of those who talk to it."""
    f = flag("mesh.identity", "--identity", metavar="FILE", help="Who you are there: a file that `ifmesh invite` wrote.")(f)
    return flag("mesh.coordinator", "--coordinator", metavar="URL", help="Where the coordinator is, as in tcp://127.0.0.1:7640.")(f)


listen = flag("mesh.listen", "--listen", metavar="URL", help="Control address; port 0: any free one.")
toy = flag("cascade.toy", "--toy", is_flag=True, flag_value=True, help="Stages without models or torch.")
cascade = flag("cascade.path", "--cascade", metavar="PATH|if-xl|if-l|if-m", help="Weights; without it, the built-in cascade.")
keep_bags = flag("mesh.keep_bags", "--keep-bags", metavar="DIR", help="Workers write a copy of every finished bag there.")
copies = click.option(
    "--copies", multiple=True, metavar="STAGE=N", expose_value=False, callback=_copies, help="Workers of a stage; repeatable."
)
tied = click.option("--tied", is_flag=True, help="End when stdin does: with the process that started this one.")
as_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable, on stdout.")


def configuration(config_file: Path | None) -> tuple[Config, list[str]]:
    """The configuration of this command, and the flags that give another ifmesh command the same one."""
    from ifmesh import config

    overrides: dict[str, object] = click.get_current_context().meta.get(_PUT, {})
    read = config.read(config_file, os.environ, overrides)
    found = config.locate(config_file, os.environ)
    flags = ["--config", str(found)] if found and config_file else []
    for key, value in overrides.items():
        flags += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    return read, flags


def door(config_file: Path | None) -> Client:
    """The client that this command's flags describe."""
    return client(configuration(config_file)[0])


def client(config: Config, timeout: float = 10.0) -> Client:
    """The client that is configured so.  timeout: seconds without an answer after which the mesh counts as lost."""
    from ifmesh.client import Client

    who: Path | Literal[False] | None = config.mesh.identity if config.mesh.curve else False
    return Client(config.mesh.coordinator or None, state=config.mesh.state, identity=who, timeout=timeout)


def services(client: Client) -> list[ServiceRow]:
    """All workers, of all pages."""
    pages = [client.status()]
    while len(pages) < pages[0].pages:
        pages.append(client.status(page=len(pages)))
    return list({row.service: row for page in pages for row in page.services}.values())
