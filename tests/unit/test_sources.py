"""What no source of ours may hold: whatever makes code of data, and whatever forks a process that has sockets."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ifmesh

LIGHT = Path(ifmesh.__file__).parent
SOURCES = sorted([*LIGHT.rglob("*.py"), *(LIGHT.parent / "services").rglob("*.py")])
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Whoever reads their data runs what it says."""
CALLED = {"eval", "exec", "compile", "__import__"}
NAMED = {
    "recv_pyobj",
    "send_pyobj",
    "recv_serialized",
    "recv_json",
    "allow_pickle",
    "trust_remote_code",
    "custom_pipeline",
    "fork",
    "forkpty",
}


def faults(tree: ast.AST) -> list[str]:
    """What of it there is, with its line."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [(node.lineno, alias.name) for alias in names if alias.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                found += [(node.lineno, module)] if module.split(".")[0] in MODULES else []
                found += [(node.lineno, alias.name) for alias in names if (module, alias.name) == ("torch", "load") or alias.name in NAMED]
            case ast.Call(func=ast.Name(id=name)) if name in CALLED:
                found.append((node.lineno, name))
            case ast.Attribute(value=ast.Name(id="torch"), attr="load"):
                found.append((node.lineno, "torch.load"))
            case ast.Attribute(attr=name) if name in NAMED:
                found.append((node.lineno, name))
            case ast.keyword(arg=str(name), value=value) if name in NAMED and not (isinstance(value, ast.Constant) and not value.value):
                found.append((value.lineno, name))
    return [f"line {line}: {what}" for line, what in sorted(found)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_makes_code_of_data(path: Path) -> None:
    assert faults(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_walk_finds_what_it_looks_for() -> None:
    bad = """\
import pickle
from marshal import loads
import torch; torch.load(x)
from torch import load
eval(x)
socket.recv_pyobj()
AutoModel.from_pretrained(x, trust_remote_code=True)
os.fork()
AutoModel.from_pretrained(x, trust_remote_code=False)
torch.compile(x); re.compile(x); model.eval()
"""
    assert [fault.split(":")[0] for fault in faults(ast.parse(bad))] == [f"line {n}" for n in range(1, 9)]


def test_the_light_half_does_not_load_them_either() -> None:
    """Nor does what it imports; but pyzmq loads pickle, for methods that nobody here may call."""
    names = [f"ifmesh.{path.stem}" for path in LIGHT.glob("*.py") if not path.stem.startswith("__")]
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += f"print(*sorted({MODULES - {'marshal', 'pickle', '_pickle'}!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=LIGHT.parent, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
