"""The drawing of the code is a test: who may know whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ifmesh

LIGHT = Path(ifmesh.__file__).parent
HEAVY = LIGHT.parent / "services" / "ifmesh_services"

VOCABULARY = {"errors", "request", "protocol", "respacing", "samplers", "rules", "geometry", "jpeg", "formats", "cascade", "modes", "stage"}
VOCABULARY |= {"published", "devices", "demand"}
MINDS = {
    "job",
    "broker",
    "keeper",
    "chores",
    "caller",
    "commands",
    "books",
    "dispatch",
    "phases",
    "roster",
    "waiting",
    "ledger",
    "desk",
    "vigil",
    "crew",
    "checkpoints",
    "uploads",
    "looks",
    "errand",
    "luggage",
    "farewell",
    "notes",
    "prober",
    "survey",
    "chaos.checker",
    "chaos.figures",
    "bench.statistics",
    "bench.orders",
    "bench.taken",
    "bench.merge",
    "bench.sweep",
    "bench.tables",
    "bench.compare",
    "bench.difference",
    "bench.markdown",
    "roles",
    "planner",
}
CODECS = {"typed", "wire", "bags", "identity", "table", "checks", "hosts", "config", "shipped", "presets", "footprint"}
PURE = VOCABULARY | MINDS
WORLD = {"time", "threading", "asyncio", "random", "secrets", "os", "subprocess", "socket", "signal", "select", "multiprocessing"}
HEAVY_PACKAGES = {"torch", "numpy", "diffusers", "transformers", "accelerate", "ifmesh_services"}
OPEN_TO_SERVICES = {
    "stage",
    "modes",
    "request",
    "protocol",
    "samplers",
    "rules",
    "geometry",
    "jpeg",
    "formats",
    "cascade",
    "bags",
    "errors",
    "published",
}


def dotted(path: Path) -> str:
    """ifmesh/wire.py -> ifmesh.wire; a package is named by its folder."""
    root = LIGHT.parent if path.is_relative_to(LIGHT) else HEAVY.parent
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for folder in (LIGHT, HEAVY) for path in sorted(folder.rglob("*.py"))}


def imported(tree: ast.AST, name: str, package: bool, lazily: bool = True) -> set[str]:
    """Dotted names of what a module imports.  lazily: within functions too; what is for type checkers only never counts."""
    found: set[str] = set()
    todo = list(ast.iter_child_nodes(tree))
    while todo:
        node = todo.pop()
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                above = name.split(".")[: len(name.split(".")) - level + package] if level else []
                base = ".".join([*above, *([module] if module else [])])
                inner = {f"{base}.{alias.name}" for alias in names} & MODULES.keys()
                found |= inner or {base}
                if len(inner) < len(names):
                    found.add(base)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                todo += node.orelse
            case ast.FunctionDef() | ast.AsyncFunctionDef() if not lazily:
                pass
            case _:
                todo += list(ast.iter_child_nodes(node))
    return found


def imports(name: str, lazily: bool = True) -> set[str]:
    path = MODULES[name]
    return imported(ast.parse(path.read_text(encoding="utf-8")), name, path.name == "__init__.py", lazily)


def of_ours(name: str, lazily: bool = True) -> set[str]:
    """The modules of ifmesh and ifmesh_services that a module imports."""
    return {m for m in imports(name, lazily) if m in MODULES and m not in ("ifmesh", name)}


def light(names: set[str]) -> list[str]:
    return sorted(f"ifmesh.{n}" for n in names if f"ifmesh.{n}" in MODULES)


ALL_LIGHT = [name for name in MODULES if name.split(".")[0] == "ifmesh"]
ALL_HEAVY = [name for name in MODULES if name.split(".")[0] == "ifmesh_services"]


@pytest.mark.parametrize("name", light(PURE))
def test_pure_modules_know_the_standard_library_without_the_world_and_each_other(name: str) -> None:
    tops = {m.split(".")[0] for m in imports(name)} - {"ifmesh"}
    assert tops <= sys.stdlib_module_names
    assert not tops & WORLD
    assert of_ours(name) <= set(light(PURE))


@pytest.mark.parametrize("name", light(VOCABULARY))
def test_the_vocabulary_knows_no_mind(name: str) -> None:
    assert of_ours(name) <= set(light(VOCABULARY))


@pytest.mark.parametrize("name", light(CODECS))
def test_codecs_know_what_is_pure_and_each_other(name: str) -> None:
    assert of_ours(name) <= set(light(PURE | CODECS))


@pytest.mark.parametrize("name", ALL_LIGHT)
def test_the_light_half_imports_nothing_heavy(name: str) -> None:
    assert not {m.split(".")[0] for m in imports(name)} & HEAVY_PACKAGES


@pytest.mark.parametrize("name", ALL_HEAVY)
def test_services_know_the_vocabulary_only(name: str) -> None:
    ours = {m for m in of_ours(name) if m.startswith("ifmesh.")}
    assert ours <= set(light(OPEN_TO_SERVICES))


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One path for each cycle that a walk in depth meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(graph[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return found


def test_nobody_imports_in_a_circle() -> None:
    """Within functions counts as well: a circle that is put off is one.  The public names of `ifmesh` are a shop window, not a module."""
    assert cycles({name: of_ours(name) for name in MODULES if name != "ifmesh"}) == []


def test_the_search_for_cycles_finds_one() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("name", [n for n in MODULES if n != "ifmesh.sockets"])
def test_socket_options_are_set_in_one_file(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    assert not any(
        isinstance(node, ast.Attribute) and node.attr in ("setsockopt", "set_hwm", "linger", "LINGER") for node in ast.walk(tree)
    )


def in_a_fresh_process(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=LIGHT.parent, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_import_ifmesh_pulls_no_tensor_library() -> None:
    in_a_fresh_process("import sys, ifmesh; assert not {'torch', 'numpy', 'zmq'} & sys.modules.keys()")


def test_no_light_module_pulls_a_tensor_library() -> None:
    names = [name for name in ALL_LIGHT if not name.endswith("__main__")]
    code = f"import sys, importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    in_a_fresh_process(code + "assert not {'torch', 'numpy'} & sys.modules.keys()")
