"""From service to service, as bags go: which ways there are, and what is wrong with those that do not work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from ifmesh.cascade import DRAWN
from ifmesh.doctor.finding import Finding, broken, well
from ifmesh.protocol import Probed, ServiceRow
from ifmesh.request import STAGES
from ifmesh.survey import HUB

Way = tuple[str, str]
"""From whom to whom."""
ADDRESS = "say there by which of its addresses the others reach it (mesh.address), and let its firewall pass what comes from them"


def ways(rows: Iterable[ServiceRow]) -> list[Way]:
    """Those that bags go, in the order of the cascade: from the coordinator to each worker, from each to the next stages', and back."""
    known = sorted(rows, key=lambda row: (STAGES.index(row.stage), row.service))
    onwards = [(one.service, other.service) for one in known for other in known if other.stage in _next(one.stage)]
    return [*((HUB, row.service) for row in known), *onwards, *((row.service, HUB) for row in known)]


def every(rows: Iterable[ServiceRow]) -> list[Way]:
    """From each to each other."""
    names = [HUB, *(row.service for row in sorted(rows, key=lambda row: (STAGES.index(row.stage), row.service)))]
    return [(one, other) for one in names for other in names if one != other]


def homes(rows: Iterable[ServiceRow], tried: Mapping[Way, Probed]) -> dict[str, str]:
    """The host of each service, by its name.  The coordinator's is that of whom it reaches without a network."""
    hosts = {row.service: row.host for row in rows}
    near = (hosts[two] for (one, two), probed in tried.items() if one == HUB and two in hosts and probed.url.startswith("ipc:"))
    return {HUB: next(near, HUB), **hosts}


def told(way: Way, tried: Mapping[Way, Probed], hosts: Mapping[str, str]) -> Finding:
    """Of one of those that were tried.  hosts: see `homes`."""
    source, target = way
    probed, hop = tried[way], f"{source} -> {target}"
    if probed.arrived and probed.trips:
        best = sorted(probed.trips)[len(probed.trips) // 2]
        return well(hop, f"{urlsplit(probed.url).scheme or 'tcp'}, there and back in {best * 1000:.2f} ms")
    if probed.arrived:
        return well(hop, f"{probed.error}; bags go one way only, and that works")
    said = f"{probed.error}: {probed.url}" if probed.url else probed.error
    if not probed.url or hosts.get(source) == hosts.get(target):
        return broken(hop, said, "are both well? `ifmesh logs` tells; a full or foreign folder for sockets: XDG_RUNTIME_DIR")
    host = urlsplit(probed.url).hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return broken(hop, f"{said}: the wrong address: only its own host finds {target} there", f"on the host of {target}: {ADDRESS}")
    if unreachable(target, tried, hosts):
        return broken(hop, f"{said}: no other host finds {target} there: the wrong address", f"on the host of {target}: {ADDRESS}")
    between = f"between the hosts of {source} and {target}"
    return broken(hop, f"{said}: the link is down", f"{between}: cable, route, firewall (data ports are any free ones)")


def unreachable(target: str, tried: Mapping[Way, Probed], hosts: Mapping[str, str]) -> bool:
    """Is it its address, rather than one link?  Nobody on another host gets anything there, from at least two hosts; or what comes from its
    host does arrive at theirs."""
    there = hosts.get(target, "")
    failed = {hosts.get(one, "") for (one, other), probed in tried.items() if other == target and not probed.arrived}
    reached = {hosts.get(one, "") for (one, other), probed in tried.items() if other == target and probed.arrived}
    back = {hosts.get(other, "") for (one, other), probed in tried.items() if hosts.get(one, "") == there and probed.arrived}
    failed -= {there}
    return not reached - {there} and (len(failed) > 1 or bool(failed & back))


def _next(stage: str) -> set[str]:
    """The stages to which its bags may go."""
    if stage == "guard":
        return set()
    return {STAGES[STAGES.index(stage) + 1], *(("guard",) if stage in DRAWN else ())}
