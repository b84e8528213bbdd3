"""The near end of `crews`: lines from stdin to one other host and back, over a connection of SSH that lives as long as this process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

from ifmesh import boarding, exits
from ifmesh.errors import Lost, MeshError, Misconfigured
from ifmesh.hosts import Host
from ifmesh.ssh import Way

if TYPE_CHECKING:
    import asyncssh

FAR = "ifmesh.bench.hosted:run"
BEAT = 5.0
"""Seconds at most between two lines to there."""


def run(name: str, host: Host) -> int:
    """Until stdin or the far end has ended.  What went wrong is the last line on stdout, as `hosted` says it."""
    try:
        asyncio.run(_serve(Way(name, host)))
    except MeshError as error:
        _pass(1, json.dumps({"error": str(error), "kind": type(error).__name__}).encode() + b"\n")
        return exits.FAILURE
    return exits.OK


async def _serve(way: Way) -> None:
    async with await way.connected() as connection:
        import asyncssh

        try:
            process = await connection.create_process(boarding.command(way.host.python), encoding=None, send_eof=False)
            process.stdin.write(boarding.lines(way.name, way.host.environment, FAR))
            asking = asyncio.ensure_future(_ask(process))
            warning = asyncio.ensure_future(_warn(way.name, process))
            rest = b""
            while some := await process.stdout.read(1 << 16):
                lines, end, rest = (rest + some).rpartition(b"\n")
                await asyncio.to_thread(_pass, 1, lines + end)  # whoever reads may first wait for another host
            last = await warning
            await process.wait_closed()
        except (asyncssh.Error, OSError) as error:
            raise way.broken(error) from None
        if asking.done() and asking.exception() is None:  # it was told to end
            return
        asking.cancel()
    status = process.exit_status
    if (why := way.ended(status)) is not None:
        raise why
    if status in (exits.CONFIGURATION, exits.UNREACHABLE):
        raise (Misconfigured if status == exits.CONFIGURATION else Lost)(last)
    raise MeshError(f"hosts.{way.name}: the clients there have ended (exit {status}){': ' if last else ''}{last}")


async def _ask(process: asyncssh.SSHClientProcess[bytes]) -> None:
    """What comes on stdin, until its end; now and then an empty line, so that the far end knows that there is somebody."""
    reader = asyncio.StreamReader(1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while True:
        try:
            line = await asyncio.wait_for(reader.readline(), BEAT)
        except TimeoutError:
            line = b"\n"
        if not line:
            break
        process.stdin.write(line)
        await process.stdin.drain()
    process.stdin.write_eof()


async def _warn(name: str, process: asyncssh.SSHClientProcess[bytes]) -> str:
    """What is said there on stderr goes to ours, but for the last line, which may be why it has ended: that is given back."""
    last = b""
    while line := await process.stderr.readline():
        if last:
            _pass(2, f"{name} | ".encode() + last)
        last = line
    return last.decode(errors="replace").strip()


def _pass(file: int, some: bytes) -> None:
    """All of it: somebody reads."""
    while some:
        some = some[os.write(file, some) :]
