"""What a stage needs: weights by form, memory for what it computes, and work for a picture.

Weights: exact numbers of parameters, from the published configurations or the headers of the files.  What it computes: the peak of all
tensors alive at once in a call, weights aside, counted over diffusers' models on torch's meta device (fp16 and fp32 agree).  For the UNets
that is, within 3 % for all that were counted (IF-I-XL, L and M, IF-II-L, the x4 upscaler, the built-in ones),

    elements a row = max over the resnets of (skip connections alive + FACTOR x what goes in)

for the decode of a VAE 3 x its second width x the picture, in fp32, and for T5 6 x its feed-forward width a token.  Allocators round up,
and libraries want workspace: see planner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FACTOR = {"Simple": 3.75, "": 4.05}  # of IF's blocks, and of the upscaler's, whose feed-forward layers take more
TOKENS = 77  # of every text, padded
TILED = 0.11  # of a decode's memory, when it is done in tiles: one of 64 x 64 latents, and the picture
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, slots=True)
class Demand:
    """parameters: of all its models.  weights: bytes by form where they are more than so many numbers: "8bit", "nf4", "fp16" of T5.

    computed: elements alive at the peak of one guided request.  decode: bytes of the VAE's, which are never less than fp32.
    work: TFLOP for a picture of the usual steps; 0: unknown.  exact: False for a guess.  narrow: how much larger blocks of 16 channels are
    than its narrowest layers.
    """

    parameters: int
    weights: Mapping[str, int]
    computed: int
    decode: int = 0
    work: float = 0.0
    exact: bool = True
    narrow: float = 1.0

    def loaded(self, form: str) -> int:
        """Bytes of the weights in this form: a dtype, "8bit" or "nf4", or one of them "+bf16"."""
        return self.weights.get(form) or self.weights.get(form.partition("+")[0]) or self.parameters * BYTES[form]

    def peak(self, dtype: str, tiled: bool = False) -> int:
        """Bytes beside the weights while it computes."""
        return max(self.computed * BYTES[dtype], int(self.decode * (TILED if tiled else 1)))


MB = 10**6
# T5-XXL: bytes of facts measured on bitsandbytes' layers; of fp16 some layers stay in fp32, and so in the hub's own 8 bit file.
T5_XXL = {
    "fp16": 11_540 * MB,
    "8bit": 7_920 * MB,
    "8bit+bf16": 5_900 * MB,
    "8bit+fp32": 8_450 * MB,
    "nf4": 6_340 * MB,
    "nf4+bf16": 4_320 * MB,
}
ENCODER = Demand(4_762_310_656, T5_XXL, 5_000_000, work=1.4)
TWO_L = Demand(1_243_277_190, {}, 294_437_000, work=309)
UP = Demand(473_398_020 + 340_400_000 + 55_325_927, {"fp16": 1_849 * MB}, 511_867_000, 3_222_274_048, work=698)  # its VAE stays in fp32
GUARD = Demand(303_967_746, {}, 12_000_000, work=0.2)


def _cascade(one: Demand, two: Demand) -> Mapping[str, Demand]:
    return {"encoder": ENCODER, "stage_one": one, "stage_two": two, "upscaler": UP, "guard": GUARD}


PUBLISHED: Mapping[str, Mapping[str, Demand]] = {
    "if-xl": _cascade(Demand(4_304_695_110, {}, 87_590_000, work=576), TWO_L),
    "if-l": _cascade(Demand(935_365_830, {}, 40_158_000, work=122), TWO_L),
    "if-m": _cascade(Demand(371_605_830, {}, 24_347_000, work=46), Demand(450_000_000, {}, 176_700_000, work=113, exact=False)),
}


def unet(config: Mapping[str, Any], side: int, rows: int = 2) -> int:
    """Elements alive at the peak of a call that draws side x side, of a UNet with this config.json."""
    widths = list(config["block_out_channels"])
    layers = _each(config.get("layers_per_block", 2), len(widths))
    factor = FACTOR["Simple"] if "Simple" in "".join(config.get("down_block_types", ())) else FACTOR[""]
    skips = [widths[0] * side * side]
    peak, before = 0.0, widths[0]
    for i, width in enumerate(widths):
        for _ in range(layers[i]):
            peak = max(peak, sum(skips) + factor * before * side * side)
            skips.append(width * side * side)
            before = width
        if i < len(widths) - 1:
            peak = max(peak, sum(skips) + factor * width * side * side)
            side //= 2
            skips.append(width * side * side)
    for i, width in enumerate(reversed(widths)):
        for _ in range(layers[-1 - i] + 1):
            alive = sum(skips)
            peak = max(peak, alive + factor * (before * side * side + skips.pop()))
            before = width
        if i < len(widths) - 1:
            peak = max(peak, sum(skips) + factor * width * side * side)
            side *= 2
    return int(rows * peak)


def decode(config: Mapping[str, Any], side: int) -> int:
    """Bytes of a VAE's decode to a picture of side x side."""
    widths = list(config["block_out_channels"])
    return 3 * int(widths[min(1, len(widths) - 1)]) * side * side * BYTES["fp32"]


def t5(config: Mapping[str, Any]) -> int:
    """Elements alive at the peak of a text's encoding."""
    return 6 * TOKENS * int(config["d_ff"])


def narrow(widths: Sequence[int]) -> float:
    """How much larger blocks of 16 channels are than the narrowest of these layers."""
    least = min(widths)
    return -(-least // 16) * 16 / least


def _each(said: int | Sequence[int], count: int) -> list[int]:
    return [said] * count if isinstance(said, int) else list(said)
