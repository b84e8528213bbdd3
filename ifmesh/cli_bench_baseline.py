"""The commands `ifmesh bench baseline` and `peers`: the mesh beside what one would use instead."""

from __future__ import annotations

from typing import Any

import click

from ifmesh import cli_options as options
from ifmesh import exits
from ifmesh.cli_bench_report import reported, whole_numbers
from ifmesh.errors import Misconfigured
from ifmesh.request import STAGES

IN_SWAP = tuple(f"services.{stage}.residency" for stage in STAGES if stage != "guard")  # which is small, and looks at all
SIZES = {"64": "stage_one", "256": "stage_two", "1024": "upscaler"}


@click.command(short_help="The mesh beside diffusers in one process.")
@click.option("--size", type=click.Choice(list(SIZES)), default="256", show_default=True, help="Where the cascade stops.")
@click.option("--threads", default="1,2", show_default=True, callback=whole_numbers, metavar="N,N,...", help="torch's, of diffusers alone.")
@click.option("--balance", type=click.FloatRange(0), default=1.0, show_default=True, metavar="S",
              help="As many steps as take so long, in each stage; 0: the cascade's.")  # fmt: skip
@click.option("--in-flight", type=click.IntRange(1, 4096), default=6, show_default=True, help="Requests at once in the mesh.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="Of each measurement.")
@click.option("--warm", type=click.FloatRange(0), default=10.0, show_default=True, metavar="S", help="Of the mesh, before each.")
@click.option("--repeat", type=click.IntRange(1), help="Rounds, in turns.  [3; with --notebook 1]")
@click.option("--device", default="cpu", show_default=True, help="Of diffusers: cpu, cuda:0; let the mesh have the same.")
@click.option("--notebook", is_flag=True, help="diffusers as in the published notebooks: for each picture load, use, free.")
@click.option("--prompts", type=click.IntRange(1, 1000), default=8, show_default=True, help="With --notebook: asked at once.")
@click.option("--steps", type=click.IntRange(1, 1000), help="With --notebook: of each stage.  [the cascade's own]")
@click.option("--turns", is_flag=True, help="With --notebook: both are there, and take turns, round by round.")
@click.option("--inflated", is_flag=True, help="With --notebook: 1.4 GB of random weights, made for this, and small pictures.")
@click.option("--memory", metavar="SIZE", help="The mesh in swap, with so much of --device, as in 14GB.")
@options.cascade
@options.copies
@options.sets
@reported
def baseline(size: str, notebook: bool, memory: str | None, report: Any, **given: Any) -> int:
    """The same prompts through diffusers' pipelines in one process, one after another, and through a mesh of its own, in turns.

    --notebook: the published sequence instead, which has one part of the cascade in memory at a time; how often each is loaded is told,
    and what memory both have taken.  With --turns a busy machine disturbs both alike, and both need memory at once.  --balance, --threads,
    --in-flight, --seconds and --warm are not for it.

    \b
    ifmesh bench baseline                       two equally heavy stages; diffusers with one thread and with two
    ifmesh bench baseline --cascade if-m --size 1024 --balance 0 --device cuda:0
    ifmesh bench baseline --notebook --prompts 8 --inflated --memory 400MB --size 1024 --steps 2 --turns --repeat 3
    ifmesh bench baseline --notebook --prompts 8 --cascade if-xl --size 1024 --device cuda:0 --memory 14GB
    """
    from importlib.util import find_spec

    from ifmesh.bench import notebook as noted
    from ifmesh.bench.baseline import Baseline, Wanted

    if find_spec("torch") is None or find_spec("diffusers") is None:
        raise Misconfigured("bench: torch or diffusers is not installed: pip install 'ifmesh[services]'")
    settings = dict(click.get_current_context().meta.get("ifmesh.overrides", {}))
    if memory:  # what shares it is told by its full name
        given["device"] = "cuda:0" if given["device"] == "cuda" else given["device"]
        settings = {f"memory.{given['device']}": memory, **dict.fromkeys(IN_SWAP, "swap"), **settings}
    noting = {name: given.pop(name) for name in ("prompts", "steps", "turns", "inflated")}
    noting["steps"] = noting["steps"] or 0
    with report as page:
        if notebook:
            here = {f"services.{stage}.device": given["device"] for stage in STAGES}
            asked = noted.Wanted(last=SIZES[size], repeat=given["repeat"] or 1, settings={**here, **settings}, **noting)
            alone = noted.Notebook(asked, page.tell, page.over)
            page.take(alone.measure, alone.report)
            return exits.OK
        given["repeat"] = given["repeat"] or 3
        work = Baseline(Wanted(SIZES[size], settings=settings, **given), page.tell, page.over)
        page.take(work.measure, work.report)
    return exits.OK


PEERS = ("ray_actors", "ray_serve", "mosec", "dask")


@click.command(short_help="The same empty stages on Ray, mosec and dask.")
@click.option("--peer", "chosen", type=click.Choice(PEERS), multiple=True, help="Only this one; repeatable.")
@click.option("--many", type=click.IntRange(2, 4096), default=16, show_default=True, help="Requests in flight, beside one at a time.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--least", type=click.IntRange(2), default=20, show_default=True, help="Requests of each measurement.")
@options.sets
@reported
def peers(chosen: tuple[str, ...], report: Any, **given: Any) -> int:
    """Four stages that do nothing, with tensors of the true sizes, on what one would use instead, each in the style of its own documents
    and in processes of its own; what is not installed is skipped, with the reason.

    \b
    ifmesh bench peers                          some minutes; pip install 'ifmesh[peers]'
    ifmesh bench peers --peer mosec --json
    """
    from ifmesh.bench.rivalry import Rivalry, Wanted

    settings = dict(click.get_current_context().meta.get("ifmesh.overrides", {}))
    with report as page:
        work = Rivalry(Wanted(chosen or PEERS, settings=settings, **given), page.tell, page.over)
        page.take(work.measure, work.report)
    return exits.OK
