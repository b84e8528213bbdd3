"""What a command prints: data on stdout, the rest on stderr.  Through rich, which honours NO_COLOR and finds out what a terminal can do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_yellow", "bright_magenta", "bright_blue")


WIDE = 250  # columns, where nobody said how many: a file, or another program


def stdout() -> Console:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDE)


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def tell(line: str) -> None:
    """One line of data."""
    stdout().print(line, markup=False, emoji=False)


def say(line: str, style: str = "") -> None:
    """One line for the reader."""
    stderr().print(line, markup=False, emoji=False, style=style or None)


def document(value: object) -> None:
    """A JSON document on one line of stdout: as it is, whatever the terminal's width."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def size(count: int) -> str:
    """Bytes for a reader: 1.3 MB."""
    number, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
