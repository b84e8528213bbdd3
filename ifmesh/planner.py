"""Where each stage of a cascade goes, on the devices that there are: pure, and small enough to try every way.

What is reckoned with, beside the weights and what they compute (demand.py):

BASE        RAM of a worker that computes on the CPU before it has weights: torch, transformers, diffusers.  Measured.
SPREAD      on a CPU what the UNets compute takes twice its tensors (blocked copies, in blocks of 16 channels: Demand.narrow), and each
REORDERED   of their weights this part more.  Measured on two built-in cascades, of 5 to 9 and of 100 to 430 MB a stage.
CONTEXT     of a card, for each process that uses it, and RAM_OF_CARD of the host.  Estimates: nothing was measured on a card here.
ROUNDED     what a card's allocator and its libraries' workspaces add to the tensors.  An estimate.
SHARE       of a card's published throughput that is reached; CORE: TFLOP/s of a CPU's core.  Estimates: `--calibrate` measures, on a CPU.
PHASE       pictures for which weights are loaded once, when stages take turns; at LOADING bytes a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from ifmesh.demand import Demand
from ifmesh.devices import Device
from ifmesh.request import STAGES

MB = 10**6
BASE, SPREAD, REORDERED = 446 * MB, 2.0, 0.2
CONTEXT, RAM_OF_CARD, ROUNDED = 450 * MB, 1_000 * MB, 1.2
SYSTEM, COORDINATOR = 500 * MB, 80 * MB
SHARE, CORE, CORES = 0.35, 0.05, 2
PHASE, LOADING = 8, 1.0e9
COPIED, MAPPED = 1.2, 0.2  # RAM while weights go to a card, as parts of them: made anew in another form, or as the files have them
QUANTISING = 13_800 * MB  # RAM while T5-XXL is quantised
COARSE = {"8bit": 0.97, "nf4": 0.85, "tiled": 0.95}  # what a picture counts that is drawn from coarser embeddings, or may show seams
LAYERED, READ = 0.5, 50  # with offload = "disk": of the weights in memory; and so many times they are read for a picture, once a step
MOST = 2  # cards that are planned for


@dataclass(frozen=True, slots=True)
class Place:
    """One stage.  device: "cuda:0" or "cpu".  form: dtype of its weights, or "8bit", "nf4".  weights, computed: bytes on the device.

    ram: of its process at its peak, all in all; loading: the part of it that is only needed while weights come.  seconds: for a picture.
    """

    stage: str
    device: str
    dtype: str
    form: str
    weights: int
    computed: int
    ram: int
    loading: int
    seconds: float
    swap: bool = False
    disk: bool = False
    tiled: bool = False
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """budgets: by device with stages in swap, bytes for them.  used, had: by device, bytes at the peak and in all.  rate: pictures/s.

    bottleneck: a device, and the stage on it that takes longest.  lacking: by device, bytes too few; () of a plan that fits.
    """

    places: tuple[Place, ...]
    used: Mapping[str, int]
    had: Mapping[str, int]
    budgets: Mapping[str, int]
    rate: float
    bottleneck: tuple[str, str]

    @property
    def lacking(self) -> Mapping[str, int]:
        return {name: used - self.had[name] for name, used in self.used.items() if used > self.had[name]}

    @property
    def fits(self) -> bool:
        return not self.lacking

    @property
    def worth(self) -> float:
        """Pictures a second above all; but one alone is not to take too long, and embeddings are to be fine."""
        coarse = prod(COARSE.get(place.form, 1.0) * (COARSE["tiled"] if place.tiled else 1.0) for place in self.places)
        period = 1 / self.rate if self.rate else 0.0
        return coarse / (period + sum(place.seconds for place in self.places) / 4 or 1.0)


def plan(demands: Mapping[str, Demand], devices: Sequence[Device], seconds: Mapping[str, float] | None = None) -> Plan:
    """The best plan that fits; where none does, the one that lacks least.  seconds: a picture takes on this CPU, by stage, as measured."""
    tried: list[Plan] = []
    for disk in (False, True):  # layers from files: only where nothing else fits
        tried += _plans(demands, devices, seconds or {}, disk)
        if fitting := [one for one in tried if one.fits]:
            best = max(fitting, key=lambda one: (one.worth, -len(one.budgets), -sum(one.used.values())))
            return best if any(device.card for device in devices) else _copied(best, devices[-1])
    return min(tried, key=lambda one: sum(one.lacking.values()))


def would_fit(demands: Mapping[str, Demand], cards: Sequence[Device], rams: Sequence[int]) -> tuple[Device, int] | None:
    """The least of these cards, with the least of these sizes of RAM, on which it would."""
    for card in sorted(cards, key=lambda one: one.memory):
        for ram in sorted(rams):
            if plan(demands, (card, Device("cpu", ram))).fits:
                return card, ram
    return None


def _plans(demands: Mapping[str, Demand], devices: Sequence[Device], seconds: Mapping[str, float], disk: bool) -> Iterator[Plan]:
    cards = [device for device in devices if device.card][:MOST]
    cpu = next((device for device in devices if not device.card), Device("cpu", 0))
    names = [f"cuda:{i}" for i in range(len(cards))] or ["cpu"]
    by = dict(zip(names, cards, strict=False)) | {"cpu": cpu}
    forms = ("whole", "8bit", "nf4") if "8bit" in demands["encoder"].weights else ("whole",)
    for encoder, one, two, up in product([*names, *(["cpu"] if cards else [])], names, names, names):
        homes = dict(zip(STAGES, (encoder, one, two, up, "cpu"), strict=True))
        for form, tiled in product(forms, (False, True)):
            if form != "nf4" or encoder != "cpu":
                places = [_place(demands[stage], stage, name, by[name], form, disk, tiled, seconds) for stage, name in homes.items()]
                yield _weighed(tuple(places), by)


def _place(
    demand: Demand, stage: str, name: str, device: Device, said: str, disk: bool, tiled: bool, seconds: Mapping[str, float]
) -> Place:
    dtype = "fp32" if not device.card or stage == "guard" else "bf16" if stage == "encoder" and device.bf16 else "fp16"
    form = said if stage == "encoder" and said != "whole" else dtype
    disk = disk and stage in ("stage_one", "stage_two", "upscaler")
    whole = demand.loaded(form if form == dtype else f"{form}+{dtype}")
    weights = int(whole * LAYERED) if disk else whole
    again = READ * whole / LOADING if disk else 0.0
    tiled = tiled and stage == "upscaler"
    computed = demand.peak(dtype, tiled)
    if not device.card:
        made = int(computed if stage == "encoder" else computed * SPREAD * demand.narrow + weights * REORDERED)
        took = seconds.get(stage, demand.work / CORE) + again
        return Place(stage, name, dtype, form, weights, made, BASE + weights + made, 0, took, disk=disk, tiled=tiled)
    alike = form in ("8bit", "fp16") and (stage != "encoder" or form == "8bit")
    loading = QUANTISING if form == "nf4" else int(whole * (MAPPED if alike else COPIED))
    took = demand.work / (device.tflops * SHARE) + again if device.tflops else 0.0  # unknown
    return Place(stage, name, dtype, form, weights, int(computed * ROUNDED), RAM_OF_CARD, loading, took, disk=disk, tiled=tiled)


def _weighed(places: tuple[Place, ...], by: Mapping[str, Device]) -> Plan:
    """With what is used of each device, and how fast it is.  Where not all of a device fit side by side, all of them are in swap."""
    used = {name: _used(name, device, places) for name, device in by.items()}
    full = {name for name, device in by.items() if used[name] > device.memory}
    places = tuple(replace(place, swap=place.device in full) for place in places)
    budgets: dict[str, int] = {}
    times: dict[str, float] = {}
    for name, device in by.items():
        here = [place for place in places if place.device == name]
        if name in full and here:
            used[name] = _used(name, device, places)
            budgets[name] = device.memory - used[name] + max(place.weights + place.computed for place in here)
        together = sum(place.seconds for place in here)
        cores = 1 if device.card else device.cores or CORES
        again = sum(place.weights for place in here if place.swap) / LOADING / PHASE
        times[name] = max(together / cores, *(place.seconds for place in here), 0.0) + again if here else 0.0
    slow = max(times, key=lambda name: times[name])
    worst = max((place for place in places if place.device == slow), key=lambda place: place.seconds)
    had = {name: device.memory for name, device in by.items()}
    return Plan(places, used, had, budgets, 1 / times[slow] if times[slow] > 0 else 0.0, (slow, worst.stage))


def _used(name: str, device: Device, places: Sequence[Place]) -> int:
    """Bytes of the device at its peak: of those in swap the largest alone."""
    here = [place for place in places if place.device == name]
    stays = sum(place.weights + place.computed for place in here if not place.swap)
    takes = max((place.weights + place.computed for place in here if place.swap), default=0)
    if device.card:
        return len(here) * CONTEXT + stays + takes
    away = sum(place.ram for place in places if place.device != name)
    return SYSTEM + COORDINATOR + away + len(here) * BASE + stays + takes + max((place.loading for place in places), default=0)


def _copied(plan: Plan, cpu: Device) -> Plan:
    """On a CPU whose cores wait for one stage: more workers of that stage, while they and the RAM suffice."""
    while True:
        per = {place.stage: place.seconds / place.copies for place in plan.places}
        slowest = max(plan.places, key=lambda place: per[place.stage])
        floor = sum(place.seconds for place in plan.places) / (cpu.cores or CORES)
        room = plan.used["cpu"] + slowest.ram <= cpu.memory
        if plan.budgets or not room or per[slowest.stage] <= floor or slowest.copies >= (cpu.cores or CORES):
            return plan
        places = tuple(replace(place, copies=place.copies + 1) if place is slowest else place for place in plan.places)
        rate = 1 / max(floor, *(place.seconds / place.copies for place in places))
        plan = replace(plan, places=places, used={**plan.used, "cpu": plan.used["cpu"] + slowest.ram}, rate=rate)
