"""The hidden command behind `ifmesh up` for each other host."""

from __future__ import annotations

from pathlib import Path

import click

from ifmesh import cli_options as options
from ifmesh.errors import Misconfigured


@click.command(hidden=True)
@click.argument("name")
@options.coordinator
@options.configured
@options.tied
def remote(name: str, tied: bool, config_file: Path | None) -> int:
    """Run the services of the host NAME over SSH, as long as this command runs."""
    from ifmesh import checks
    from ifmesh.remote import run

    config, _ = options.configuration(config_file)
    if name not in config.hosts:
        raise Misconfigured(f"hosts.{name}: no such host in the configuration{checks.nearest(name, config.hosts)}")
    if tied:
        from ifmesh.tied import to_stdin

        to_stdin()
    return run(name, config)
