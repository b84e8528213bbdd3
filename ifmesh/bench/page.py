"""A report as one HTML file that needs nothing else: no script, no network; the plots are SVG within it."""

from __future__ import annotations

from html import escape

from ifmesh.bench.head import Report
from ifmesh.bench.plots import plots
from ifmesh.bench.tables import Table, head, tables

TITLES = {
    "mesh": "What the mesh costs",
    "load": "A mesh under load",
    "links": "The links of the mesh",
    "sweep": "How a mesh scales",
    "peers": "The same work on other systems",
    "baseline": "A mesh beside one process",
    "verify": "A mesh against diffusers",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22252b; background: #fbfaf7; max-width: 1060px; margin: 2.5rem auto;
  padding: 0 1.5rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
p.said { color: #6b6f77; margin: .2rem 0 1.5rem } p.note { margin: .35rem 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .28rem .8rem; text-align: right; border-bottom: 1px solid #e4e1d9; vertical-align: top }
th { font-weight: 600; color: #6b6f77; border-bottom: 2px solid #c9c6bf }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
table.text th, table.text td { text-align: left; overflow-wrap: anywhere } table.text td:first-child { white-space: nowrap }
figure { margin: 1.2rem 0 } svg { max-width: 100%; height: auto } code { background: #efece4; padding: .1rem .35rem; border-radius: 3px }
"""


def page(report: Report) -> str:
    """The HTML.  Whatever it says is escaped: names in a report may come from a configuration."""
    title: str = TITLES.get(report["kind"], str(report["kind"]))
    drawn, lacking = plots(report)
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>ifmesh: {escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>',
        f'<h1>{escape(title)}</h1><p class="said"><code>{escape(report["command"])}</code>, {escape(report["at"])}</p>',
        *(f"<figure>{svg}</figure>" for svg in drawn),
        *([f'<p class="note">{escape(lacking)}</p>'] if lacking else []),
        *map(_table, tables(report)),
        _table(head(report), text=True),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _table(table: Table, text: bool = False) -> str:
    parts = [f"<h2>{escape(table.title)}</h2>"] if table.title else []
    if table.rows:
        parts.append(f'<div class="wide"><table{" class=text" if text else ""}><tr>{_cells("th", table.columns)}</tr>')
        parts += [f"<tr>{_cells('td', row)}</tr>" for row in table.rows]
        parts.append("</table></div>")
    return "".join([*parts, *(f'<p class="note">{escape(note)}</p>' for note in table.notes)])


def _cells(tag: str, texts: tuple[str, ...]) -> str:
    return "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
