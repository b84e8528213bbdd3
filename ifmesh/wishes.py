"""What a user may wish for, and the Request that comes of it.  Whatever can never work is a BadRequest here, before anything is sent."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from ifmesh import bags, cascade, geometry, rules, source, typed, wire
from ifmesh.cascade import BROUGHT, RNG
from ifmesh.embeds import Embeds
from ifmesh.errors import BadRequest
from ifmesh.image import Image
from ifmesh.request import DEADLINES, STAGES, Request, Settings
from ifmesh.stage import Tensor

LAST = {64: "stage_one", 256: "stage_two", 1024: "upscaler"}  # pixels -> the stage that draws them
STATE = RNG.shape[0]  # bytes of a CPU torch.Generator's state
FLOATS = bags.FLOATS


class Wishes(TypedDict, total=False):
    """The keyword arguments of whatever draws, of both clients.

    negative: what not to draw.  style: a second text, which Stage I and II mix into the prompt, as much as Settings.positive_mixer
    says.  seed: 0 to 2**63 - 1; None: drawn here.  size: pixels, 64, 256 or 1024: where the cascade stops; of a picture that is not
    square, the shorter side.  settings: by stage name, as Settings or plain data, e.g. {"stage_one": {"steps": 50, "guidance": 7.0}}.
    strength: (0, 1], of Stage I and II, where settings do not say it; vary and inpaint.

    seeding: "chained" (one generator through all stages) or "per_stage" (fresh in each).  generator: instead of a seed, a CPU
    torch.Generator, whose state is read and left as it is, or that state, 5056 bytes.  embeds: from `encode`, or a float array
    [2, 77, C], rows negative and prompt; then the encoder is left out, and there is no style.

    width, height: base pixels (Stage I) of what is generated, multiples of 8 up to 256; aspect_ratio: instead, "3:2", with the shorter
    side of 64.  stages: the earlier pictures too.  format: "png", "webp" (lossless) or "jpeg", of the files that the mesh publishes.

    upscale: make the source larger, anew after the prompt: True, by Stage II and the upscaler (size 256: by Stage II); "alone", by the
    upscaler; four times larger by each stage, whatever the size.  keep: seconds, at most a day, for which the mesh keeps what it takes to
    go on from there, at size 64 or 256.  continues: an Image of a job with keep: go on where it ended, see `proceed`.

    priority: -100 to 100, higher goes first.  deadline: seconds from acceptance to the end; deadline_queued: until its first stage
    begins; deadline_running: from then on.  tied: the job is cancelled when this client is gone.
    """

    negative: str
    style: str
    seed: int | None
    size: int
    settings: Mapping[str, Settings | Mapping[str, object]] | None
    strength: float | None
    seeding: Literal["chained", "per_stage"]
    generator: object
    embeds: object
    width: int | None
    height: int | None
    aspect_ratio: str | None
    stages: bool
    format: Literal["png", "webp", "jpeg"]
    upscale: bool | Literal["alone"]
    keep: float
    continues: Image | None
    priority: int
    deadline: float | None
    deadline_queued: float | None
    deadline_running: float | None
    tied: bool


@dataclass(frozen=True, slots=True)
class Brought:
    """What goes along with requests.  frame: one safetensors frame of the tensors `names`, digest: its SHA-256; all empty for nothing.

    size: (width, height) of the source, (0, 0): not known.  seed: of the generator whose state is in it, as far as it is known.
    continues: the picture from which a request goes on; then the mesh has the frame, and here it is empty.
    """

    names: tuple[str, ...] = ()
    frame: bytes = field(default=b"", repr=False)
    digest: str = ""
    source: bytes | None = field(default=None, repr=False)
    mask: bytes | None = field(default=None, repr=False)
    embeds: Embeds | None = field(default=None, repr=False)
    seed: int | None = None
    size: tuple[int, int] = (0, 0)
    continues: Image | None = field(default=None, repr=False)


NOTHING = Brought()


def made(prompt: object, given: object, mask: object, wishes: Mapping[str, Any], known: Brought | None = None) -> tuple[Request, Brought]:
    """The Request, and what it brings.  given, mask: whatever `source.read` reads, or None: the task follows from them.

    known: what was made of the same source, mask, embeds and generator before.  Slow where it reads files and URLs.
    """
    _check_names(wishes)
    if wishes.get("continues") is not None:
        return _onwards(prompt, given, mask, wishes)
    brought = bring(given, mask, wishes.get("embeds"), wishes.get("generator")) if known is None else known
    task, first, last = _way(wishes, brought)
    sketched = ("stage_one", "stage_two") if last != "stage_one" or wishes.get("keep") else ("stage_one",)
    whole: dict[str, object] = {
        "prompt": prompt,
        "seed": _seed(wishes.get("seed"), brought),
        "task": task,
        "settings": _settings(wishes.get("settings"), wishes.get("strength"), task, sketched),
        "first_stage": first,
        "last_stage": last,
        "brings": brought.names,
        "upload": brought.digest,
    }
    whole |= {name: wishes[name] for name in PLAIN if name in wishes}
    if wishes.get("aspect_ratio") is not None:
        whole |= _shape(wishes["aspect_ratio"], wishes, task)
    if brought.embeds is not None:
        whole["prompt"] = prompt or brought.embeds.prompt
        if not whole["prompt"]:
            raise BadRequest("prompt", prompt, "these embeds do not know theirs: give it, too, for the upscaler and the record")
        whole.setdefault("negative", brought.embeds.negative)
    return _built(whole), brought


def need(field: str, given: object) -> None:
    """For tasks that cannot do without."""
    if given is None:
        raise BadRequest(field, given, "a path, URL, bytes, Pillow image or numpy array")


def encoding(prompt: object, negative: object) -> Request:
    """The Request for embeddings alone."""
    return _built({"prompt": prompt, "negative": negative, "seed": 0, "task": "encode", "last_stage": "encoder"})


def bring(given: object, mask: object, embeds: object, generator: object) -> Brought:
    """What a request brings, in one frame."""
    bag: dict[str, Tensor] = {}
    if mask is not None and given is None:
        raise BadRequest("mask", mask, "a mask says where to repaint a source: give the source, too")
    if given is not None:
        picture = source.read(given, "source")
        bag["source"] = Tensor("U8", (len(picture.data),), picture.data)
        if mask is not None:
            cut = source.read(mask, "mask")
            bag["mask"] = Tensor("U8", (len(cut.data),), cut.data)
            _check_alike((picture.width, picture.height), (cut.width, cut.height))
    own = None if embeds is None else _embeds(embeds)
    if own is not None:
        bag["embeds"] = own.tensor
    if generator is not None:
        state = _state(generator)
        bag["rng"] = Tensor("U8", (len(state),), state)
    if not bag:
        return NOTHING
    try:
        frame = bags.encode(bag)
    except wire.Garbled as error:
        raise BadRequest("embeds", embeds, f"too large: {error}") from None
    return Brought(
        tuple(name for name in BROUGHT if name in bag),
        frame,
        hashlib.sha256(frame).hexdigest(),
        picture.data if given is not None else None,
        cut.data if mask is not None else None,
        own,
        None if generator is None else _initial(generator),
        (picture.width, picture.height) if given is not None else (0, 0),
    )


def unpacked(request: Request, frame: bytes) -> Brought:
    """The same of a frame that is made already.  BadRequest: it is not what the request says it brings."""
    if not request.brings and not frame:
        return NOTHING
    if hashlib.sha256(frame).hexdigest() != request.upload:
        raise BadRequest("upload", request.upload, "the SHA-256 of the frame that is given with the request")
    try:
        bag = bags.decode(frame, tuple(BROUGHT[name] for name in request.brings))
    except wire.Garbled as error:
        raise BadRequest("brings", request.brings, f"the frame holds something else: {error}") from None
    files = {name: bytes(bag[name].data) if name in bag else None for name in ("source", "mask")}
    for name, data in files.items():
        if data is not None and len(data) > geometry.FILE_BYTES:
            raise BadRequest(name, f"{len(data)} bytes", f"at most {geometry.FILE_BYTES} bytes: scale it down, or save it as JPEG")
    return Brought(request.brings, frame, request.upload, files["source"], files["mask"])


# ---- inside

ANEW = ("negative", "stages", "format", "keep", "priority", *DEADLINES, "tied")  # wishes that the Request has as they are ...
PLAIN = (*ANEW, "style", "seeding", "width", "height")
FIXED = ("style", "seed", "seeding", "generator", "embeds", "width", "height", "aspect_ratio", "upscale")  # when a picture is continued


def _way(wishes: Mapping[str, Any], brought: Brought) -> tuple[str, str, str]:
    """Task, first and last stage."""
    last, upscale = _last(wishes.get("size", 1024)), wishes.get("upscale", False)
    own = "embeds" in brought.names
    if own and wishes.get("style"):
        raise BadRequest("style", wishes["style"], "embeds of your own hold no style: leave one of them out")
    if upscale is False:
        task = "inpaint" if "mask" in brought.names else "vary" if "source" in brought.names else "generate"
        return task, "stage_one" if own else "encoder", last
    if upscale is not True and not (isinstance(upscale, str) and upscale == "alone"):
        raise BadRequest("upscale", upscale, "true; or 'alone', for the upscaler without Stage II")
    if "source" not in brought.names:
        need("source", None)
    if "mask" in brought.names:
        raise BadRequest("mask", "a mask", "belongs to inpaint: leave it out, or upscale")
    most = geometry.MOST["stage_two" if upscale is True else "upscaler"]
    if max(brought.size) > most:
        by = "by Stage II: make it smaller, or let the upscaler do it alone" if upscale is True else "by the upscaler: make it smaller"
        raise BadRequest("source", "{} x {}".format(*brought.size), f"at most {most} pixels a side {by}")
    if upscale is True:
        if last == "stage_one":
            raise BadRequest("size", wishes["size"], "upscale begins with Stage II: 256 or 1024 pixels")
        return "upscale", "stage_two" if own else "encoder", last
    if last != "upscaler":
        raise BadRequest("size", wishes["size"], "the upscaler alone draws four times its source: leave it out")
    if own:
        raise BadRequest("embeds", "embeddings", "the upscaler alone reads the prompt, and no embeddings: leave them out")
    return "upscale", "upscaler", last


def _last(size: object) -> str:
    if type(size) is not int or size not in LAST:
        raise BadRequest("size", size, "64, 256 or 1024 pixels")
    return LAST[size]


def _onwards(prompt: object, given: object, mask: object, wishes: Mapping[str, Any]) -> tuple[Request, Brought]:
    """The rest of the way of a picture that was kept: as it was asked for, but for what is wished anew.

    What Stage II reads of the texts was encoded before; the upscaler reads prompt and negative itself, so they may be others there.
    """
    image = wishes["continues"]
    if not isinstance(image, Image):
        raise BadRequest("continues", image, "a picture of `candidates`, or of a job with keep=...")
    asked = image.request
    if asked is not None and asked.keep and not image.kept:
        raise BadRequest("continues", image.job, "was not kept, for want of room in the mesh: draw it whole, with its seed")
    if asked is None or not image.kept:
        raise BadRequest("continues", image.job, "was not kept: ask for it with size=64 or 256, and keep=3600 (seconds)")
    for name, value in {"source": given, "mask": mask, **{name: wishes.get(name) for name in FIXED}}.items():
        if value is not None and value is not False:
            raise BadRequest(name, value, "the picture that is continued has its own: leave it out")
    first, last = STAGES[STAGES.index(asked.last_stage) + 1], _last(wishes.get("size", 1024))
    if STAGES.index(last) < STAGES.index(first):
        raise BadRequest("size", wishes["size"], "the picture that is continued has got that far already: a larger one, or leave it out")
    alone = first == "upscaler"
    for name, value, own in (("prompt", prompt, asked.prompt), ("negative", wishes.get("negative"), asked.negative)):
        if value and value != own and not alone:
            raise BadRequest(name, value, "Stage II reads what was encoded for the picture that is continued: leave it out")
    said = wishes.get("settings")
    for stage in said if isinstance(said, Mapping) else ():
        if stage in STAGES and STAGES.index(stage) < STAGES.index(first):
            raise BadRequest("settings", stage, "has drawn the picture that is continued: leave it out")
    task = "generate" if alone else asked.task
    names = {blob.name for blob in cascade.kept(asked)}
    known = tuple(name for name in BROUGHT if name in names)
    brought = Brought(known, b"", image.kept, image.source, image.mask, seed=image.seed, continues=image)
    later = {stage: typed.plain(s) for stage, s in asked.settings.items() if STAGES.index(stage) >= STAGES.index(first)}
    whole: dict[str, object] = typed.plain(asked) | {
        "prompt": prompt or asked.prompt,
        "task": task,
        "style": "" if alone else asked.style,
        "settings": _settings(wishes.get("settings"), wishes.get("strength"), task, () if alone else ("stage_two",), later),
        "first_stage": first,
        "last_stage": last,
        **dict.fromkeys(DEADLINES),
        "keep": 0.0,
        "brings": brought.names,
        "upload": brought.digest,
    }
    return _built(whole | {name: wishes[name] for name in ANEW if name in wishes}), brought


def _built(whole: dict[str, object]) -> Request:
    try:
        request = typed.build(Request, whole, unknown="error")
    except typed.Mismatch as error:
        raise BadRequest(error.where, error.value, error.remedy) from None
    cascade.IF.check(request)
    return request


def _check_names(wishes: Mapping[str, Any]) -> None:
    names = Wishes.__annotations__
    for name, value in wishes.items():
        if name in Settings.__dataclass_fields__ and name not in names:
            raise BadRequest(name, value, f"belongs to a stage: settings={{'stage_one': Settings({name}=...)}}")
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(names))}"
            raise BadRequest(name, value, f"no such wish; {remedy}")


def _seed(seed: object, brought: Brought) -> object:
    if "rng" not in brought.names:
        return secrets.randbits(32) if seed is None else seed
    if seed is not None:
        raise BadRequest("seed", seed, "give a seed or a generator, not both")
    return brought.seed


def _settings(
    settings: object, strength: object, task: str, sketched: tuple[str, ...], known: Mapping[str, object] | None = None
) -> object:
    """Plain data.  sketched: the stages whose strength is said by `strength`.  known: what holds of a stage where nothing else is said."""
    if settings is None:
        settings = {}
    if not isinstance(settings, Mapping):
        return settings  # the Request says what it would be
    try:
        said = {stage: typed.plain(s) if isinstance(s, Settings) else s for stage, s in settings.items()}
    except typed.Mismatch as error:
        raise BadRequest("settings", error.value, error.remedy) from None
    plain = {**(known or {}), **{stage: _anew((known or {}).get(stage), s) for stage, s in said.items()}}
    if strength is None:
        return plain
    if task not in rules.SKETCHED:
        raise BadRequest("strength", strength, "belongs to vary and inpaint: give a source, or leave it out")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        raise BadRequest("strength", strength, "above 0, at most 1; 1 keeps nothing of the source")
    for stage in sketched:
        own = plain.get(stage, {})
        anew = settings.get(stage)
        mine = anew.strength if isinstance(anew, Settings) else anew.get("strength") if isinstance(anew, Mapping) else None
        if isinstance(own, Mapping) and mine is None:
            plain[stage] = {**own, "strength": strength}
    return plain


WALK = ("steps", "timesteps", "schedule")  # of these a stage's settings say one


def _anew(known: object, said: object) -> object:
    """One stage's settings: what is said over what is known, field by field."""
    if not isinstance(known, Mapping) or not isinstance(said, Mapping):
        return said
    own = {name: value for name, value in said.items() if value is not None}
    held = {name: value for name, value in known.items() if name not in WALK or not own.keys() & set(WALK)}
    return held | own


def _shape(aspect: object, wishes: Mapping[str, Any], task: str) -> dict[str, object]:
    """Width and height of an aspect."""
    if rules.NEEDS[task]:
        raise BadRequest("aspect_ratio", aspect, f"{task} follows its source: leave it out")
    if other := next((name for name in ("width", "height") if wishes.get(name) is not None), ""):
        raise BadRequest("aspect_ratio", aspect, f"give aspect_ratio or {other}, not both")
    try:
        width, height = geometry.shaped(aspect if isinstance(aspect, str) else "")
    except ValueError as error:
        raise BadRequest("aspect_ratio", aspect, str(error)) from None
    return {"width": width, "height": height}


def _check_alike(picture: tuple[int, int], mask: tuple[int, int]) -> None:
    if not geometry.alike(picture, mask):
        said = "of another aspect than the source, {} x {}: cut or scale one of them".format(*picture)
        raise BadRequest("mask", "{} x {}".format(*mask), said)


def _embeds(value: object) -> Embeds:
    own = Embeds.of(value)
    if own.tensor.dtype not in FLOATS or len(own.tensor.shape) != 3 or own.tensor.shape[:2] != (2, 77):
        shown = f"{own.tensor.dtype} {list(own.tensor.shape)}"
        raise BadRequest("embeds", shown, f"[2, 77, C], rows negative and prompt, of {', '.join(FLOATS)}: as `encode` gives them")
    return own


def _state(generator: object) -> bytes:
    remedy = f"a CPU torch.Generator, or its state: {STATE} bytes"
    get = getattr(generator, "get_state", None)
    try:
        state: Any = get() if callable(get) else generator
        data = bytes(memoryview(state)) if isinstance(state, bytes | bytearray | memoryview) else bytes(state.tolist())
    except Exception:  # others' arrays raise whatever they like
        raise BadRequest("generator", generator, remedy) from None
    if len(data) != STATE:
        raise BadRequest("generator", f"a state of {len(data)} bytes", remedy)
    return data


def _initial(generator: object) -> int:
    """The seed that it began with, for the record; 0: not known."""
    get = getattr(generator, "initial_seed", None)
    seed = get() if callable(get) else 0
    return seed if isinstance(seed, int) and 0 <= seed < 2**63 else 0
