"""A coordinator whose ZAP thread dies of each question that it is asked, as long as a file is there.

    python -m tests.matrix.doorless FILE coordinator ...

Everything after FILE is `ifmesh ...`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ifmesh.cli import main
from ifmesh.zap import Zap


def deadly(file: Path) -> None:
    answer = Zap.answer

    def dying(zap: Zap, asked: list[bytes]) -> list[bytes]:
        if file.exists():
            raise SystemExit  # no Exception: nothing in the thread survives it
        return answer(zap, asked)

    Zap.answer = dying  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    deadly(Path(sys.argv[1]))
    del sys.argv[1]
    main()
