"""A connection over SSH to one of [hosts.NAME], and in words that say what to do why there is none."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifmesh.errors import Lost, MeshError, Misconfigured
from ifmesh.hosts import Host

if TYPE_CHECKING:
    import asyncssh

ALIVE, DEAD = 5.0, 3  # a connection over which nothing comes is asked each so many seconds, and given up after so many unanswered
CONNECT = 15.0  # seconds, and once more for the log-in


@dataclass(frozen=True, slots=True)
class Way:
    """name: of the host in ifmesh.toml."""

    name: str
    host: Host

    async def connected(self) -> asyncssh.SSHClientConnection:
        """Misconfigured: somebody has to mend it.  Lost: it may come back by itself."""
        try:
            import asyncssh
        except ImportError:
            raise Misconfigured(f"hosts.{self.name}: asyncssh is not installed: pip install 'ifmesh[ssh]'") from None
        host, where = self.host, f"hosts.{self.name}"
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

    def broken(self, error: Exception) -> Lost:
        """In mid-connection."""
        return Lost(f"hosts.{self.name}: the connection to {self.host.address} is lost: {reason(error)}")

    def ended(self, status: int | None) -> MeshError | None:
        """Why the command there has ended, where that was none of its own doing.  status: its exit code; None: it told none."""
        where = f"hosts.{self.name}"
        if status is None:
            return Lost(f"{where}: the connection to {self.host.address} is lost")
        if status in (126, 127):
            remedy = "install Python 3.11 or newer and ifmesh there, or say which command it is"
            return Misconfigured(f"{where}.python: {self.host.python!r}: there is no such command on {self.host.address}: {remedy}")
        return None

    def _refused(self, error: Exception) -> MeshError:
        """In words that say what to do."""
        import asyncssh

        host, where = self.host, f"hosts.{self.name}"
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
                return Lost(f"{where}.address: {host.address!r}: no such name: {reason(error)}: say its number, or mend the name service")
            case ConnectionRefusedError():
                return Lost(f"{where}.port: nobody listens at {at}: start sshd there, or say its port")
            case TimeoutError():
                return Lost(f"{where}.address: no answer from {at} in {CONNECT:g} s: is it up, and does a firewall let SSH through?")
            case _:
                return Lost(f"{where}: no connection to {at}: {reason(error)}")

    def _is_known(self, file: Path) -> bool:
        """Does the file hold a host key of that host?"""
        import asyncssh

        try:
            return bool(asyncssh.read_known_hosts(str(file)).match(self.host.address, "", self.host.port)[0])
        except (OSError, ValueError):
            return False


def reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
