"""The command `ifmesh pull`: the weights of a cascade, from the hub into its cache on this host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ifmesh import cli_options as options
from ifmesh.cli_heavy import heavy
from ifmesh.errors import Misconfigured
from ifmesh.request import STAGES

if TYPE_CHECKING:
    from ifmesh.config import Config, Service

SHORT = 14_500_000_000  # bytes of RAM: with less T5-XXL comes in 8 bits; to quantise it while loading takes 13.8 GB
Tell = Callable[[str, int, int], None]


@click.command(short_help="Download the weights of a cascade, or of a repository.")
@click.argument("what", nargs=-1, required=True, metavar="CASCADE|REPO...")
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), help="Only what this stage loads; repeatable.")
@click.option("--variant", "variants", multiple=True, metavar="[STAGE=]NAME", help="fp16, 8bit ...; '': the files without a name.")
@click.option("--dry-run", is_flag=True, help="List files and sizes, and fetch nothing.")
@click.option("--accept-license", "--accept-licence", "accept", is_flag=True, help="You have read the licences that are named.  Once.")
@options.configured
def pull(
    what: tuple[str, ...], stages: tuple[str, ...], variants: tuple[str, ...], dry_run: bool, accept: bool, config_file: Path | None
) -> int:
    """Fetch exactly what the services load, as they are configured: one variant, safetensors only.  It goes on where it was interrupted.

    The files go into the hub's cache (HF_HOME), where the services look.  HF_ENDPOINT names a mirror, HF_TOKEN or `hf auth login` the
    account that has accepted the licence on the hub; with HF_HUB_OFFLINE it only tells whether all is here.

    \b
    ifmesh pull if-xl --dry-run
    ifmesh pull if-xl --accept-license
    ifmesh pull if-xl --stage encoder --variant 8bit
    ifmesh pull stabilityai/stable-diffusion-x4-upscaler --variant fp16
    """
    from ifmesh import screen

    config, _ = options.configuration(config_file)
    hub = _heavy("pull")
    said = _variants(variants)
    wants = [want for name in what for want in _wants(config, name, stages or STAGES, said)]
    if _offline():
        hub.present(wants)
        screen.say(f"HF_HUB_OFFLINE: all that {', '.join(what)} needs is here")
        return 0
    listings = hub.listed(wants)
    _tell(listings, dry_run)
    if dry_run:
        return 0
    accepted = hub.Accepted(config.mesh.state / "licences.json")
    lacking = accepted.lacking(listings)
    for listing in lacking:
        screen.say(f"{listing.repo}: licence {listing.licence}: {listing.page}", "yellow")
    if lacking and not accept:
        raise Misconfigured("read the licence, and say so once: the same command with --accept-license")
    for listing in listings:
        hub.allowed(listing)
    accepted.add(lacking)
    hub.fits(listings)
    missing = [file for listing in listings for file in listing.missing]
    fetch = _heavy("fetching").fetch
    with _bars(sum(file.size for file in missing)) as told:
        for file in missing:
            fetch(file, lambda count, file=file: told(f"{file.repo}/{file.path}", count, file.size))
    screen.say(f"{', '.join(what)}: all is here" + (f", {screen.size(sum(file.size for file in missing))} of it new" if missing else ""))
    return 0


def _wants(config: Config, name: str, stages: tuple[str, ...], said: dict[str, str]) -> list[Any]:
    """What a cascade's stages, or those of a repository, load.  Misconfigured: it is nothing of the hub."""
    from ifmesh import found, published

    want, recipes = _heavy("pull").Want, _heavy("recipes")
    cards = found.cards()
    if recipes.is_hub_name(name) and not Path(name).exists():
        repos = {stage: name for stage in published.stages(name) if stage in stages}
        if not published.stages(name):
            return [want(name, variant=said.get("", "fp16"), strict="" in said)]
    elif name in ("", "nano", "built-in"):
        raise Misconfigured(f"{name!r}: the built-in cascade needs no fetching: it came with the package")
    else:
        repos = recipes.read(name).repos
    made = []
    for stage in [stage for stage in repos if stage in stages and not Path(repos[stage]).is_dir()]:
        variant, strict = _variant(stage, config.services[stage], cards[0].bf16 if cards else None, said)
        made.append(want(repos[stage], stage, published.PARTS[stage], variant, strict))
    return made


def _variant(stage: str, service: Service, bf16: bool | None, said: dict[str, str]) -> tuple[str, bool]:
    """Which files the service will read, and whether it insists.  bf16: whether the first card has it; None: there is no card."""
    from ifmesh import found, screen

    if stage in said or "" in said:
        return said.get(stage, said.get("", "")), True
    own = service.options.get("variant")
    if isinstance(own, str) and own:
        return own, True
    if stage == "encoder" and not service.dtype and not service.options.get("quantize") and found.ram() < SHORT and bf16 is not True:
        remedy = 'for the mesh, too: [services.encoder.options] variant = "8bit"'
        screen.say(f"this machine has {screen.size(found.ram())} of RAM: T5 comes in 8 bits; say so {remedy}", "yellow")
        return "8bit", True
    card = bf16 is not None and service.device != "cpu"
    usual = "fp32" if not card or stage == "guard" else ("bf16" if stage == "encoder" and bf16 else "fp16")
    return ("fp16", False) if (service.dtype or usual) == "fp16" else ("", True)


def _variants(said: tuple[str, ...]) -> dict[str, str]:
    """By stage; "": of all."""
    made: dict[str, str] = {}
    for text in said:
        stage, equals, name = text.partition("=")
        if equals and stage not in STAGES:
            raise click.UsageError(f"--variant {text}: [STAGE=]NAME; stages: {', '.join(STAGES)}")
        made[stage if equals else ""] = name if equals else text
    return made


def _tell(listings: list[Any], files: bool) -> None:
    from ifmesh import screen

    if files:
        for listing in listings:
            for file in listing.files:
                screen.tell(f"{screen.size(file.size):>10}  {'here   ' if file.here else 'missing'}  {file.repo}/{file.path}")
    for listing in listings:
        count, size = len(listing.missing), sum(file.size for file in listing.missing)
        of = f"{screen.size(sum(file.size for file in listing.files))} in {len(listing.files)} files"
        gated = f"; gated: accept it at {listing.page}" if listing.gated else ""
        licence = f"; licence {listing.licence}{gated}" if listing.licence else gated
        screen.say(f"{listing.repo}: {of}, {f'{screen.size(size)} in {count} to fetch' if count else 'all here'}{licence}")


@contextmanager
def _bars(total: int) -> Iterator[Tell]:
    """A bar for the file and one for all on a terminal, a line for each file elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from ifmesh import screen

    console = screen.stderr()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    whole, one = bars.add_task("all", total=total), bars.add_task("", total=None)
    counts: dict[str, int] = {}

    def told(name: str, count: int, size: int) -> None:
        if name not in counts and not console.is_terminal:
            screen.say(f"{name}: {screen.size(size)}" + (f", goes on at {screen.size(count)}" if count else ""))
        counts[name] = count
        bars.update(whole, completed=sum(counts.values()))
        bars.update(one, description=name.rpartition("/")[2], completed=count, total=size)

    with bars:
        yield told


def _offline() -> bool:
    return bool(_heavy("pull").constants.HF_HUB_OFFLINE)


def _heavy(name: str) -> Any:
    """A module that knows the hub, and imports no torch."""
    return heavy(name, "pull", "huggingface_hub")
