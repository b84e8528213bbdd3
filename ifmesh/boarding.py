"""How ifmesh comes to run on another host: one command whose text never changes, and what it is told line by line over its standard input.

So no value, and above all no secret, is ever in an argument there, where every user of that host could read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ifmesh.protocol import VERSION

NEEDED = ("zmq", "msgpack", "safetensors", "PIL", "click", "rich", "xxhash")
"""What the light half of ifmesh imports."""
READ = 'exec(eval(open(0,"rb",0,closefd=False).readline()))'
"""Reads one line, a string literal, and runs it.  It takes no byte more: the rest is for whoever comes after it."""

_FIRST = """
import json, os, sys
if sys.version_info < (3, 11):
    sys.stderr.write("hosts.{name}.python: %s is Python %d.%d: ifmesh needs 3.11 or newer there; say which command it is\\n"
                     % ((sys.executable,) + sys.version_info[:2]))
    sys.exit(3)
os.environ.update(json.loads({environment!r}))
os.environ["PYTHONSAFEPATH"] = "1"
os.execv(sys.executable, [sys.executable, "-c", {read!r}])
"""

_SECOND = """
import sys
from importlib.util import find_spec
def end(what):
    sys.stderr.write("hosts.{name}.python: " + what + ", or name another command\\n")
    sys.exit(3)
if find_spec("ifmesh") is None:
    end("ifmesh is not installed for " + sys.executable + " there: " + sys.executable + " -m pip install {install}")
missing = [name for name in {needed!r} if find_spec(name) is None]
if missing:
    end("missing there: " + ", ".join(missing) + ": " + sys.executable + " -m pip install {install}")
try:
    from ifmesh.boarding import release
    there = release()
except ImportError:
    there = "an older one"
if there != {release!r}:
    end("another ifmesh is there (" + there + ") than here ({release}): " + sys.executable + " -m pip install {install}")
from {module} import {function}
{function}()
"""


def release() -> str:
    """What must be equal on all hosts, for people: the version, and that of the protocol."""
    return f"{version() or 'not installed'}, protocol {VERSION}"


def version() -> str:
    """Of the installed package; "": it is run from a checkout."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("ifmesh")
    except PackageNotFoundError:
        return ""


def command(python: str) -> str:
    """For the shell there, whichever it is.  python: as hosts.NAME.python."""
    return f"{python} -c '{READ}'"


def lines(name: str, environment: Mapping[str, str], far: str = "ifmesh.hosted:run") -> bytes:
    """What that command is to read; then comes whatever the function reads that is the far end, as module:function."""
    install = f"'ifmesh[services]=={version()}'" if version() else "the same checkout"
    module, _, function = far.partition(":")
    first = _FIRST.format(name=name, environment=json.dumps(dict(environment)), read=READ)
    second = _SECOND.format(name=name, install=install, needed=NEEDED, release=release(), module=module, function=function)
    return b"".join(line.encode() + b"\n" for line in (ascii(first), ascii(second)))
