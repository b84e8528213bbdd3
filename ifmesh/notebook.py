"""`ifmesh.local()`: a mesh of this process alone, for notebooks and scripts."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path

from ifmesh.client import Client
from ifmesh.inline import Inline, in_notebook
from ifmesh.own import Own


class Local(Client):
    """A client and the mesh that it asks, which ends with it: by `close`, `with`, or when nobody holds it any more; and with this process,
    however that ends.  `state` is the mesh's folder while it lives, as --state of the commands."""

    def __init__(self, own: Own, inline: Inline | None) -> None:
        super().__init__(**own.door)
        self.state = own.state
        self._asker.watch = inline.event if inline is not None else None
        self._end = weakref.finalize(self, own.end)

    def close(self) -> None:
        """Ends the mesh, too: in at most some seconds, with whatever is under way."""
        super().close()
        self._end()


def local(
    cascade: str | Path = "",
    *,
    toy: bool = False,
    settings: Mapping[str, object] | None = None,
    config: str | Path | None = None,
    show: bool | None = None,
) -> Local:
    """Start a mesh of this process alone, wait until every stage is ready, and give the client that asks it.

    cascade: as `ifmesh up --cascade`; "": as configured, else the built-in one.  toy: stages without models.  settings: by dotted key as in
    ifmesh.toml, {"services.stage_one.copies": 2}; config: that file.  show: below the cell, how far everything is and the early pictures;
    None: in a notebook.  Misconfigured: a setting is not right.  MeshError: it does not become ready, with the reason.
    """
    chosen: dict[str, object] = {**({"cascade.toy": True} if toy else {}), **({"cascade.path": str(cascade)} if str(cascade) else {})}
    inline = Inline() if (in_notebook() if show is None else show) else None
    own = Own({**chosen, **(settings or {})}, file=Path(config) if config is not None else None).start()
    try:
        own.ready(inline.starting if inline is not None else None)
        if inline is not None:
            inline.ready()
        return Local(own, inline)
    except BaseException:
        own.end()
        raise
