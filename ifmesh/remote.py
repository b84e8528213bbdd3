"""One other host of the mesh: a connection over SSH, and at its far end an `ifmesh up` that lives as long as it does."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from ifmesh import boarding, exits, identity, shipped
from ifmesh.config import Config
from ifmesh.hosted import Order
from ifmesh.request import STAGES
from ifmesh.ssh import Way

if TYPE_CHECKING:
    import asyncssh

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
                ending = asyncio.ensure_future(self._tell_to_end(process))
                while some := await process.stdout.read(1 << 16):
                    _show(some)
                ending.cancel()
                await process.wait_closed()
            except (asyncssh.Error, OSError) as error:
                raise self._way.broken(error) from None
        return self._ended(process.exit_status)

    async def _tell_to_end(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        await self._asked.wait()
        process.stdin.write_eof()

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
