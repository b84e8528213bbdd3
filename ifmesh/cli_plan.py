"""The command `ifmesh plan`: where each stage of a cascade goes on the devices that there are, and what to expect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ifmesh import cli_options as options
from ifmesh.cli_heavy import heavy
from ifmesh.errors import Misconfigured

if TYPE_CHECKING:
    from ifmesh.config import Config
    from ifmesh.demand import Demand
    from ifmesh.devices import Device
    from ifmesh.planner import Place, Plan

RAMS = (8, 13, 16, 24, 32, 64, 128)  # GB, of what is proposed


@click.command(short_help="Where each stage goes on the devices that there are.")
@click.option("--devices", "named", metavar="NAME,...", help="As t4,cpu:13GB; without it, those of this machine.")
@options.cascade
@click.option("--calibrate", is_flag=True, help="Run each stage on this CPU for some steps, for images/s that were measured.")
@click.option("--emit", type=click.Choice(["toml"]), help="Write the configuration on stdout: > ifmesh.toml.")
@options.configured
def plan(named: str | None, calibrate: bool, emit: str | None, config_file: Path | None) -> int:
    """Which stage on which device, in which numbers, resident or taking turns (swap); the memory that takes, and how fast it is.

    Weights are counted exactly; what computing takes was counted on the models, and measured on CPUs; what a card's libraries add, and
    its speed, are estimates.  Where nothing fits, it says what would.  `ifmesh up --preset` reads saved plans.

    \b
    ifmesh plan --devices t4,cpu:13GB --cascade if-xl
    ifmesh plan --cascade if-m --emit toml > ifmesh.toml
    ifmesh plan --calibrate                            the built-in cascade on this CPU
    """
    from ifmesh import devices, found, planner, presets, screen

    config, _ = options.configuration(config_file)
    there = devices.read(named) if named else found.devices()
    if all(device.card for device in there):
        raise Misconfigured(f"--devices {named}: say how much RAM there is, too: {named},cpu:16GB")
    demands = _demands(config)
    seconds: Mapping[str, float] = {}
    if calibrate:
        if any(device.card for device in there):
            raise Misconfigured("--calibrate: measures on the CPU, and these stages go to a card: leave it out, or say --devices cpu:SIZE")
        seconds = heavy("calibration", "plan --calibrate").measured(config.cascade.path, screen.say)
    made = planner.plan(demands, there, seconds)
    said = named or ",".join(f"{device.name}:{device.memory / 1e9:.1f}GB" for device in there)
    if not made.fits:
        raise Misconfigured(_remedy(config.cascade.path, demands, made, there))
    if emit:
        print(presets.toml(made, config.cascade.path, said), end="")
        return 0
    _print(made, said, bool(seconds), demands)
    return 0


def _demands(config: Config) -> Mapping[str, Demand]:
    from ifmesh import demand, footprint

    path = config.cascade.path
    if path in demand.PUBLISHED:
        return demand.PUBLISHED[path]
    if config.cascade.toy:
        raise Misconfigured("cascade.toy: stages without weights need no plan")
    return footprint.of(Path(path) if path else heavy("nano.shipped", "plan", "ifmesh_services").FOLDER)


def _print(plan: Plan, said: str, measured: bool, demands: Mapping[str, Demand]) -> None:
    from ifmesh import screen

    right = ("copies", "weights", "computing", "RAM", "s/picture")
    table = screen.table(f"on {said}", "stage", "device", "as", "stays", *right, right=right)
    for place in plan.places:
        took = f"{place.seconds:.3g}" if place.seconds else "?"
        stays = "swap" if place.swap else "resident"
        guess = "" if demands[place.stage].exact else "about "
        sizes = (guess + screen.size(place.weights), screen.size(place.computed), screen.size(place.ram))
        table.add_row(place.stage, place.device, _form(place), stays, str(place.copies), *sizes, took)
    screen.stdout().print(table)
    for name, used in plan.used.items():
        turns = f" with the largest alone; those in swap take turns in {screen.size(plan.budgets[name])}" if name in plan.budgets else ""
        screen.tell(f"{name}: {screen.size(used)} of {screen.size(plan.had[name])} at the peak{turns}")
    if plan.rate and (measured or all(place.seconds for place in plan.places)):
        how = "measured on this CPU" if measured else "reckoned from published throughput, not measured"
        device, stage = plan.bottleneck
        screen.tell(f"{plan.rate:.3g} images/s, {how}; the bottleneck is {device}, most of it {stage}")
    else:
        screen.tell("images/s: unknown; --calibrate measures them")


def _form(place: Place) -> str:
    more = [place.form] if place.form != place.dtype else []
    return ", ".join([place.dtype, *more, *(["offload disk"] if place.disk else []), *(["VAE tiles"] if place.tiled else [])])


def _remedy(cascade: str, demands: Mapping[str, Demand], plan: Plan, there: tuple[Device, ...]) -> str:
    """What is lacking, and what would do."""
    from ifmesh import demand, devices, planner, screen

    lacking = ", ".join(f"{name} lacks {screen.size(size)} of {screen.size(plan.used[name])}" for name, size in plan.lacking.items())
    would = []
    for other in ("if-l", "if-m"):
        if cascade in demand.PUBLISHED and other != cascade and planner.plan(demand.PUBLISHED[other], there).fits:
            would.append(f"--cascade {other} on the same devices")
            break
    cards = [device for device in there if device.card] or list(devices.KNOWN.values())
    found = planner.would_fit(demands, cards, [ram * devices.GB for ram in RAMS])
    found = found or planner.would_fit(demands, list(devices.KNOWN.values()), [ram * devices.GB for ram in RAMS])
    if found:
        would.append(f"--devices {found[0].name},cpu:{found[1] // devices.GB}GB")
    return f"{cascade or 'the built-in cascade'} fits in no way: {lacking}; what would: {', or '.join(would) or 'nothing that is known'}"
