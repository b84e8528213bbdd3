"""Which repositories a cascade is made of, and the settings it starts from."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ifmesh.cascade import DRAWN, IF
from ifmesh.errors import BadRequest, Misconfigured
from ifmesh.published import PUBLISHED, UPSCALER
from ifmesh.request import STAGES, Request, Settings
from ifmesh.rules import NEEDS, SKETCHED, STRENGTH, STYLED
from ifmesh_services.nano.shipped import FOLDER

TIMES = 4  # how much larger each stage draws than the one before, unless a source leads it
_UPSCALER = Settings(steps=75, guidance=9.0, noise_level=100)
_GENERATE = {
    "stage_one": Settings(steps=100, guidance=7.0, positive_mixer=0.25),
    "stage_two": Settings(steps=50, guidance=4.0, noise_level=250, positive_mixer=0.5),
    "upscaler": _UPSCALER,
}
DEFAULTS = {  # by task: those of diffusers' pipelines; but the upscaler's noise is 100, as the published scripts pass it, and the mixers
    "generate": _GENERATE,  # are those of the original DeepFloyd IF, which alone knows styles
    "vary": {
        "stage_one": Settings(steps=80, guidance=10.0, strength=0.7, positive_mixer=0.25),
        "stage_two": Settings(steps=50, guidance=4.0, strength=0.8, noise_level=250, positive_mixer=0.5),
        "upscaler": _UPSCALER,
    },
    "inpaint": {
        "stage_one": Settings(steps=50, guidance=7.0, strength=1.0, positive_mixer=0.25),
        "stage_two": Settings(steps=100, guidance=4.0, strength=0.8, noise_level=0, positive_mixer=0.5),
        "upscaler": _UPSCALER,
    },
    "upscale": _GENERATE,  # by the same pipelines
}
SETTINGS = {f.name for f in fields(Settings)}
REAL = ("guidance", "strength", "threshold_ratio", "threshold_max", "positive_mixer")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a cascade is made of.  repos: stage name to folder or hub name; defaults: task to stage to the settings it starts from."""

    name: str
    repos: dict[str, str]
    defaults: dict[str, dict[str, Settings]]

    def settings(self, stage: str) -> dict[str, Settings]:
        """Where each task starts from in that stage."""
        return {task: stages[stage] for task, stages in self.defaults.items()}


def read(cascade: str) -> Recipe:
    """The recipe of a cascade: "" (the built-in one), a folder with cascade.json, "if-xl", "if-l" or "if-m".

    Misconfigured when there is no such cascade, or cascade.json is wrong.
    """
    if cascade in PUBLISHED:
        one, two = PUBLISHED[cascade]
        return Recipe(cascade, _repos(one, two, UPSCALER), DEFAULTS)
    if not cascade:
        return _read(FOLDER)
    folder = Path(cascade).expanduser()
    if not folder.is_dir():
        near = difflib.get_close_matches(cascade, PUBLISHED, 1)
        raise Misconfigured(
            f"cascade.path: {cascade!r} is neither a folder nor one of {', '.join(PUBLISHED)}"
            + (f"; did you mean {near[0]!r}?" if near else "; leave it out for the built-in cascade")
        )
    return _read(folder.resolve())


def is_hub_name(repo: str) -> bool:
    """Could this be the name of a repository on the hub?"""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repo) is not None


def _repos(one: str, two: str, upscaler: str) -> dict[str, str]:
    """The encoder and the guard live in Stage I's repository."""
    return dict(zip(STAGES, (one, one, two, upscaler, one), strict=True))


def _read(folder: Path) -> Recipe:
    """The recipe in folder/cascade.json.

    A stage's entry holds its settings for generate and upscale; those for vary and inpaint lie in objects of that name within it.  The
    upscaler knows no tasks: its entry is for all.
    """
    path = folder / "cascade.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Misconfigured(f"{path}: no such file; a cascade's folder holds cascade.json beside its repositories") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Misconfigured(f"{path}: cannot be read as JSON: {error}") from error
    _check_keys(path, "", data, {"name", *DRAWN})
    repos: list[str] = []
    defaults: dict[str, dict[str, Settings]] = {task: {} for task in ("generate", *SKETCHED)}
    for stage in DRAWN:
        entry = data.get(stage)
        own = SKETCHED if stage in STRENGTH else ()
        _check_keys(path, f"{stage}.", entry, {"repo", *SETTINGS, *own})
        repo = entry.get("repo")
        if not isinstance(repo, str) or not repo:
            raise Misconfigured(f"{path}: {stage}.repo: {repo!r}: the name of a folder beside cascade.json, or of a repository on the hub")
        beside = folder / repo
        if not beside.is_dir() and not is_hub_name(repo):
            raise Misconfigured(f"{path}: {stage}.repo: no folder {beside}")
        repos.append(str(beside) if beside.is_dir() else repo)
        for task in defaults:
            said, where = (entry.get(task, {}), f"{stage}.{task}") if task in own else (entry, stage)
            if task in own:
                _check_keys(path, f"{where}.", said, SETTINGS)
            defaults[task][stage] = _settings(path, where, task, stage, said)
    defaults["upscale"] = defaults["generate"]
    one, two, upscaler = repos
    return Recipe(str(data.get("name", folder.name)), _repos(one, two, upscaler), defaults)


def _check_keys(path: Path, where: str, data: object, known: set[str]) -> None:
    if not isinstance(data, dict):
        raise Misconfigured(f"{path}: {where.rstrip('.') or 'the whole'}: {data!r}: an object with {', '.join(sorted(known))}")
    for key in sorted(set(data) - known):
        near = difflib.get_close_matches(key, sorted(known), 1, cutoff=0.0)
        raise Misconfigured(f"{path}: unknown key {where + key!r}; did you mean {where + near[0]!r}?")


def _settings(path: Path, where: str, task: str, stage: str, entry: dict[str, Any]) -> Settings:
    """The task's published defaults with what the entry says; checked by the rules for a request's own."""
    whole = {key: entry[key] for key in ("steps", "noise_level") if entry.get(key) is not None}
    real = {key: entry[key] for key in REAL if entry.get(key) is not None}
    named = {key: entry[key] for key in ("schedule", "scheduler") if entry.get(key) is not None}
    listed = entry.get("timesteps")
    for key, value in (whole | real).items():
        if isinstance(value, bool) or not isinstance(value, int if key in whole else (int, float)):
            raise Misconfigured(f"{path}: {where}.{key}: {value!r}: a number")
    for key, text in named.items():
        if not isinstance(text, str):
            raise Misconfigured(f"{path}: {where}.{key}: {text!r}: a name")
    if listed is not None:
        if not isinstance(listed, list) or not all(type(t) is int for t in listed):
            raise Misconfigured(f"{path}: {where}.timesteps: {listed!r}: a list of whole numbers")
        whole["timesteps"] = tuple(listed)
    usual = {name: getattr(DEFAULTS[task][stage], name) for name in SETTINGS}
    if (listed is not None or "schedule" in named) and "steps" not in whole:
        usual["steps"] = None
    made = Settings(**(usual | whole | named | {key: float(value) for key, value in real.items()}))
    try:
        style = "oil" if stage in STYLED else ""
        IF.check(Request("a fox", 0, task, "", {stage: made}, style, brings=NEEDS[task], upload="0" * 64 if NEEDS[task] else ""))
    except BadRequest as error:
        raise Misconfigured(f"{path}: {where}: {error}") from error
    return made
