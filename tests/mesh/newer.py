"""`ifmesh`, as if it spoke the next version of the protocol: `python -m tests.mesh.newer ARGUMENTS`."""

from __future__ import annotations

from ifmesh import protocol

protocol.VERSION += 1  # before anything has read it

if __name__ == "__main__":
    from ifmesh import cli

    cli.main()
