"""One other host of the mesh: a connection over SSH, and at its far end an `ifmesh up` that lives as long as it does."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from ifmesh import boarding, exits, identity, shipped
from ifmesh.config import Config
from ifmesh.errors import MeshError
from ifmesh.hosted import Order
from ifmesh.request import STAGES
from ifmesh.ssh import CONNECT, Way, reason

if TYPE_CHECKING:
    import asyncssh

LOOK = 2.0  # seconds between two looks at the keys that are there, too
AGAIN = 10.0  # seconds until a new one that could not be brought is tried again
GOODBYE = 8.0  # seconds that the far end has, once it was told to end


def run(name: str, config: Config) -> int:
    """Until SIGTERM (0), or until the far end or the connection has ended.  Misconfigured: what a human must mend; Lost: what may pass."""
    return asyncio.run(_Remote(name, config).run())


class _Remote:
    def __init__(self, name: str, config: Config) -> None:
        self._name, self._config, self._host = name, config, config.hosts[name]
        self._way = Way(name, self._host)
        self._asked = asyncio.Event()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked.set)
        order = self._order()
        serving = asyncio.ensure_future(self._serve(order))
        asked = asyncio.ensure_future(self._asked.wait())
        await asyncio.wait((serving, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not serving.done():  # `_serve` tells the far end, which has some time to end
            await asyncio.wait((serving,), timeout=GOODBYE)
            serving.cancel()
            await asyncio.wait((serving,), timeout=1.0)
            return exits.OK
        return serving.result()

    def _order(self) -> Order:
        """Misconfigured: a key of the mesh's own is missing or damaged."""
        config, name = self._config, self._name
        url = config.control()
        curve = [stage for stage in STAGES if config.copies(stage, name)] if config.mesh.curve else []
        keys = {stage: config.identity(f"worker:{stage}") for stage in curve}
        mesh = identity.tag(next(iter(keys.values())).server if keys else url)
        return Order(name, mesh, url, shipped.toml(config, name, url), {stage: identity.dumps(key) + "\n" for stage, key in keys.items()})

    async def _serve(self, order: Order) -> int:
        async with await self._way.connected() as connection:
            import asyncssh

            print(f"connected to {self._host.address}", flush=True)
            try:
                process = await connection.create_process(
                    boarding.command(self._host.python), encoding=None, stderr=asyncssh.STDOUT, send_eof=False
                )
                process.stdin.write(boarding.lines(self._name, self._host.environment) + order.line())
                beside = [asyncio.ensure_future(work) for work in (self._tell_to_end(process), self._renew(connection, order))]
                while some := await process.stdout.read(1 << 16):
                    _show(some)
                for work in beside:
                    work.cancel()
                await process.wait_closed()
            except (asyncssh.Error, OSError) as error:
                raise self._way.broken(error) from None
        return self._ended(process.exit_status)

    async def _tell_to_end(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        await self._asked.wait()
        process.stdin.write_eof()

    async def _renew(self, connection: asyncssh.SSHClientConnection, there: Order) -> None:
        """A key of the mesh's own that changes here is brought there, where `up` has its workers start again with it.  there: what is."""
        import asyncssh

        while True:
            await asyncio.sleep(LOOK)
            changed = ""
            try:
                order = self._order()
                changed = ", ".join(f"worker-{stage}" for stage, key in order.keys.items() if key != there.keys[stage])
                if changed:
                    await asyncio.wait_for(self._bring(connection, order), CONNECT)
                    print(f"brought the new key of {changed}", flush=True)
                    there = order
            except (MeshError, asyncssh.Error, OSError, TimeoutError) as error:
                what = f"the new key of {changed} is not on {self._host.address}" if changed else "a key cannot be read"
                remedy = f"tried again in {AGAIN:g} s; the workers there are heard no longer than the old key lasts (`ifmesh keys list`)"
                print(f"hosts.{self._name}: {what}: {reason(error)}; {remedy}", flush=True)
                await asyncio.sleep(AGAIN)

    async def _bring(self, connection: asyncssh.SSHClientConnection, order: Order) -> None:
        """MeshError: it is not there."""
        import asyncssh

        command = boarding.command(self._host.python)
        async with await connection.create_process(command, encoding=None, stderr=asyncssh.STDOUT) as process:
            process.stdin.write(boarding.lines(self._name, self._host.environment, "ifmesh.hosted:renew") + order.line())
            process.stdin.write_eof()
            said = await process.stdout.read()
        if process.exit_status != exits.OK:
            raise MeshError(said.decode(errors="replace").strip().rpartition("\n")[2] or f"exit {process.exit_status}")

    def _ended(self, status: int | None) -> int:
        if self._asked.is_set():
            return exits.OK
        if (why := self._way.ended(status)) is not None:
            raise why
        return exits.FAILURE if status not in (exits.CONFIGURATION, exits.UNREACHABLE) else status


def _show(some: bytes) -> None:
    """All of it: the supervisor reads."""
    while some:
        some = some[os.write(1, some) :]
