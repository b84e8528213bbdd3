"""A small word grammar: the captions on which the built-in tokenizers are trained."""

from __future__ import annotations

import random
from collections.abc import Iterator

SIZES = (
    "tiny", "small", "large", "huge", "tall", "round", "old", "young", "happy", "sleepy", "brave", "quiet",
)  # fmt: skip
COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "golden", "silver", "turquoise",
    "rainbow",
)  # fmt: skip
THINGS = (
    "fox", "cat", "dog", "kangaroo", "owl", "horse", "elephant", "robot", "astronaut", "wizard", "dragon", "castle", "house", "tree",
    "flower", "mountain", "boat", "car", "train", "teapot", "lantern", "circle", "square", "triangle", "star", "moon", "sun", "cube",
    "sphere", "mushroom", "cactus", "penguin", "corgi", "bicycle", "lighthouse", "apple", "face", "landscape",
)  # fmt: skip
WEAR = ("hat", "hoodie", "scarf", "pair of sunglasses", "crown", "backpack", "helmet", "bow tie")
PLACES = (
    "on a beach", "in the snow", "in a forest", "in front of the eiffel tower", "under the sea", "on the moon", "in a city at night",
    "on a wooden table", "above the clouds", "beside a river", "on a white background", "at sunset", "inside a library",
)  # fmt: skip
KINDS = (
    "a photo of", "a painting of", "a watercolor of", "an oil painting of", "a pencil drawing of", "pixel art of", "a 3d render of",
    "a close up portrait of", "a sticker of", "a poster of", "an illustration of", "a black and white photo of",
)  # fmt: skip
ENDS = (
    "", "", ", highly detailed", ", 4k, sharp focus", ", soft light", ", trending on artstation", ", low quality, blurry", ", cinematic",
    ' holding a sign that says "very deep learning"', ", by a famous artist",
)  # fmt: skip


def captions(count: int, seed: int = 0) -> Iterator[str]:
    """`count` captions in lower case; the same seed gives the same ones."""
    draw = random.Random(seed)
    pick = draw.choice
    for _ in range(count):
        subject = f"{pick(SIZES)} {pick(COLOURS)} {pick(THINGS)}"
        wear = f" wearing a {pick(COLOURS)} {pick(WEAR)}" if draw.random() < 0.4 else ""
        other = f" and {pick(('one', 'two', 'three', 'many'))} {pick(COLOURS)} {pick(THINGS)}s" if draw.random() < 0.3 else ""
        yield f"{pick(KINDS)} a {subject}{wear}{other} {pick(PLACES)}{pick(ENDS)}"
