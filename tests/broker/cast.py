"""Who wants what of the simulated mesh, and when.  The prompt says what is wrong with a job, and in which stage."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ifmesh.request import DEADLINES, Request
from tests.broker.patron import ONWARDS, Wish
from tests.broker.toyland import EMPTY, luggage, sha

if TYPE_CHECKING:
    from tests.broker.world import World

KINDS = ["fox"] * 12 + ["hurry", "raises", "flaky", "bad", "poison"]

KEEP = (1.0, 10.0, 40.0)  # seconds

TASKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((("generate", ()),) * 4),
    ("vary", ("source",)),
    ("vary", ("source",)),
    ("inpaint", ("source", "mask")),
    ("generate", ("embeds",)),
    ("generate", ("rng",)),
    ("encode", ()),
)


class Cast:
    """The wishes of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._poisoned = False

    def enter(self) -> None:
        """Every wish gets its hour."""
        world, rng = self.world, self.world.rng
        deserter = world.patrons[-1] if len(world.patrons) > 1 and rng.random() < 0.5 else None
        for n in range(rng.randint(8, 16)):
            wish = self.wish(n)
            world.at(rng.uniform(0.0, world.storm_s * 0.7), rng.choice(world.patrons).submit, wish)
            if wish.request.last_stage != "stage_one" and rng.random() < 0.3:
                world.at(rng.uniform(0.0, world.storm_s), rng.choice(world.patrons).look, wish.job)
            if wish.request.keep and rng.random() < 0.3:  # another job that keeps the very same
                twin = Wish(f"{wish.job}-twin", replace(wish.request, keep=rng.choice(KEEP)), wish.first)
                world.at(rng.uniform(0.0, world.storm_s * 0.7), rng.choice(world.patrons).submit, twin)
            if rng.random() < 0.05 and not world.owned:  # another client wants the very same
                same = Wish(wish.job, wish.request, wish.first)
                world.at(rng.uniform(0.0, world.storm_s), rng.choice(world.patrons).submit, same)
        if deserter is not None:
            slow = Request(f"slow:{rng.choice(world.cascade.stages).name}", 99, tied=True)
            world.at(rng.uniform(0.0, world.storm_s * 0.5), deserter.submit, Wish("slow-99", slow))
            world.at(rng.uniform(world.storm_s * 0.6, world.storm_s), deserter.desert)

    def _hurry(self) -> dict[str, Any]:
        """One deadline, or several."""
        rng = self.world.rng
        return {name: rng.uniform(0.2, 20.0) for name in rng.choice((DEADLINES, DEADLINES[:1], DEADLINES[1:2], DEADLINES[2:]))}

    def wish(self, n: int) -> Wish:
        rng = self.world.rng
        kind = rng.choice(KINDS)
        if kind == "poison":
            kind, self._poisoned = "fox" if self._poisoned else kind, True
        stage = rng.choice(self.world.cascade.stages).name
        last = rng.choice(("stage_one", "stage_two", "upscaler", "upscaler"))
        if kind in ("raises", "bad", "poison") and stage not in ("encoder", "stage_one", "guard"):
            last = "upscaler"
        task, brings = rng.choice(TASKS)
        if task == "encode" and kind not in ("fox", "hurry"):
            task, brings = "generate", ()
        first = luggage(brings, rng.choice((n, n, 0))) if brings else EMPTY
        request = Request(
            prompt=f"{kind}:{stage}", seed=n, task=task, last_stage="encoder" if task == "encode" else last,
            first_stage="stage_one" if "embeds" in brings else "encoder", priority=rng.choice((0, 0, 0, 5)),
            **(self._hurry() if kind == "hurry" else {}), brings=brings, upload=sha(first) if brings else "",
            tied=rng.random() < 0.3, keep=rng.choice((0.0, *KEEP)) if last in ONWARDS and task != "encode" else 0.0,
        )  # fmt: skip
        return Wish(f"{kind}-{n}", request, first, previews=rng.random() < 0.4)
