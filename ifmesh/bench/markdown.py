"""A report as Markdown, to be committed beside its pictures.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ifmesh.bench.tables import Table, head, tables


def markdown(report: Mapping[str, Any], title: str, picture: str = "") -> str:
    """picture: the file of one, in the same folder; "": there is none."""
    parts = [f"# {_text(title)}", f"`{report['command'].replace('`', '')}`, {report['at']}"]
    parts += [part for table in tables(report) for part in _table(table)]
    parts += [f"![what both have drawn]({picture})"] if picture else []
    return "\n\n".join([*parts, *_table(head(report))]) + "\n"


def _table(table: Table) -> list[str]:
    parts = [f"## {_text(table.title)}"] if table.title else []
    if table.rows:
        lines = [table.columns, ("---",) * len(table.columns), *table.rows]
        parts.append("\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines))
    return [*parts, *map(_text, table.notes)]


def _text(said: str) -> str:
    """Names in a report may come from a configuration: none of them is markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else " " if letter == "\n" else letter for letter in said)
