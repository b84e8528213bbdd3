"""The commands `ifmesh bench ...`, gathered."""

from __future__ import annotations

import click

from ifmesh import cli_bench_baseline, cli_bench_links, cli_bench_load, cli_bench_mesh, cli_bench_quality, cli_bench_stages, cli_bench_sweep


@click.group(short_help="Measure a mesh, its stages, and what others do.")
def bench() -> None:
    """Measure what a mesh costs and brings, and what its stages do on this machine, beside what others make of the same work."""


for command in (
    *(cli_bench_mesh.mesh, cli_bench_mesh.up, cli_bench_mesh.client),
    *(cli_bench_load.load, cli_bench_load.crew, cli_bench_sweep.sweep, cli_bench_sweep.compare),
    *(cli_bench_baseline.baseline, cli_bench_baseline.peers, cli_bench_links.links),
    *(cli_bench_stages.stages, cli_bench_stages.tolerance, cli_bench_quality.quality),
):
    bench.add_command(command)
