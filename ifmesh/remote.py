"""One other host of the mesh: a connection over SSH, and at its far end an `ifmesh up` that lives as long as it does."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifmesh import boarding, exits, identity, shipped
from ifmesh.config import Config
from ifmesh.errors import Lost, MeshError, Misconfigured
from ifmesh.hosted import Order
from ifmesh.request import STAGES

if TYPE_CHECKING:
    import asyncssh

ALIVE, DEAD = 5.0, 3  # a connection over which nothing comes is asked each so many seconds, and given up after so many unanswered
CONNECT = 15.0  # seconds, and once more for the log-in
GOODBYE = 8.0  # seconds that the far end has, once it was told to end


def run(name: str, config: Config) -> int:
    """Until SIGTERM (0), or until the far end or the connection has ended.  Misconfigured: what a human must mend; Lost: what may pass."""
    try:
        import asyncssh  # noqa: F401
    except ImportError:
        raise Misconfigured(f"hosts.{name}: asyncssh is not installed: pip install 'ifmesh[ssh]'") from None
    return asyncio.run(_Remote(name, config).run())


class _Remote:
    def __init__(self, name: str, config: Config) -> None:
        self._name, self._config, self._host = name, config, config.hosts[name]
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
        import asyncssh

        async with await self._connected() as connection:
            print(f"connected to {self._host.address}", flush=True)
            try:
                process = await connection.create_process(
                    boarding.command(self._host.python), encoding=None, stderr=asyncssh.STDOUT, send_eof=False
                )
                process.stdin.write(boarding.lines(self._name, self._host.environment, order.plain()))
                ending = asyncio.ensure_future(self._tell_to_end(process))
                last = b""
                while some := await process.stdout.read(1 << 16):
                    last = (last + some)[-1000:]
                    _show(some)
                ending.cancel()
                await process.wait_closed()
            except (asyncssh.Error, OSError) as error:
                raise Lost(f"hosts.{self._name}: the connection to {self._host.address} is lost: {_reason(error)}") from None
        return self._ended(process.exit_status)

    async def _tell_to_end(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        await self._asked.wait()
        process.stdin.write_eof()

    def _ended(self, status: int | None) -> int:
        where = f"hosts.{self._name}"
        if self._asked.is_set():
            return exits.OK
        if status is None:
            raise Lost(f"{where}: the connection to {self._host.address} is lost")
        if status in (126, 127):
            remedy = "install Python 3.11 or newer and ifmesh there, or say which command it is"
            raise Misconfigured(f"{where}.python: {self._host.python!r}: there is no such command on {self._host.address}: {remedy}")
        return status if status in (exits.CONFIGURATION, exits.UNREACHABLE) else exits.FAILURE

    async def _connected(self) -> asyncssh.SSHClientConnection:
        """Misconfigured: somebody has to mend it.  Lost: it may come back by itself."""
        import asyncssh

        host, where = self._host, f"hosts.{self._name}"
        for key, file in (("key", host.key), ("known_hosts", host.known_hosts)):
            if file is not None and not os.access(file, os.R_OK):
                raise Misconfigured(f"{where}.{key}: {str(file)!r}: no such file, or not to be read: name another")
        options: dict[str, Any] = {"username": host.user} if host.user else {}
        if host.key is not None:
            options |= {"client_keys": [str(host.key)], "agent_path": None}
        if host.known_hosts is not None:
            options["known_hosts"] = str(host.known_hosts)
        try:
            return await asyncssh.connect(
                host.address,
                host.port,
                **options,
                password_auth=False,
                kbdint_auth=False,
                gss_auth=False,
                connect_timeout=CONNECT,
                login_timeout=CONNECT,
                keepalive_interval=ALIVE,
                keepalive_count_max=DEAD,
            )
        except (asyncssh.Error, asyncssh.KeyImportError, OSError, TimeoutError) as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> MeshError:
        """In words that say what to do."""
        import asyncssh

        host, where = self._host, f"hosts.{self._name}"
        at = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
        file = host.known_hosts or Path("~/.ssh/known_hosts")
        match error:
            case asyncssh.HostKeyNotVerifiable():
                if self._is_known(file.expanduser()):
                    remedy = f"somebody may listen in; only if that host has a new key: ssh-keygen -f {file} -R '{at}', and see below"
                    return Misconfigured(f"{where}.known_hosts: {at} shows another host key than {file} holds: {remedy}")
                remedy = f"ssh-keyscan -p {host.port} {host.address} >> {file}, and compare its fingerprint with that of the host"
                return Misconfigured(f"{where}.known_hosts: {file} does not hold the host key of {at}: {remedy}")
            case asyncssh.PermissionDenied():
                key = f"the key {host.key}" if host.key else "none of your keys"
                remedy = f"put its public half into ~/.ssh/authorized_keys there (ssh-copy-id), or say {where}.key, {where}.user"
                return Misconfigured(f"{where}.key: {at} refuses {key} for {host.user or 'your user name'}: {remedy}")
            case asyncssh.KeyEncryptionError():
                return Misconfigured(f"{where}.key: {host.key}: it has a passphrase: hand it to ssh-agent, and leave {where}.key out")
            case asyncssh.KeyImportError():
                return Misconfigured(f"{where}.key: {host.key}: no private key that can be read: make one by ssh-keygen -t ed25519")
            case socket.gaierror():
                return Lost(f"{where}.address: {host.address!r}: no such name: {_reason(error)}: say its number, or mend the name service")
            case ConnectionRefusedError():
                return Lost(f"{where}.port: nobody listens at {at}: start sshd there, or say its port")
            case TimeoutError():
                return Lost(f"{where}.address: no answer from {at} in {CONNECT:g} s: is it up, and does a firewall let SSH through?")
            case _:
                return Lost(f"{where}: no connection to {at}: {_reason(error)}")

    def _is_known(self, file: Path) -> bool:
        """Does the file hold a host key of that host?"""
        import asyncssh

        try:
            return bool(asyncssh.read_known_hosts(str(file)).match(self._host.address, "", self._host.port)[0])
        except (OSError, ValueError):
            return False


def _show(some: bytes) -> None:
    """All of it: the supervisor reads."""
    while some:
        some = some[os.write(1, some) :]


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
