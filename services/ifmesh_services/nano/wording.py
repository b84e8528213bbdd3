"""The caption language: what a scene may be called, in some 150 words of lower case English."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from ifmesh_services.nano.scenes import COLOURS, Scene, scene

NOUNS = {
    "circle": ("circle", "circle", "disc", "dot", "ball"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star", "star", "five pointed star"),
    "heart": ("heart", "heart", "valentine"),
    "ring": ("ring", "ring", "hoop", "donut"),
    "cross": ("cross", "cross", "plus sign", "plus"),
    "diamond": ("diamond", "diamond", "rhombus"),
}
TINTS = {
    "red": ("red",) * 3 + ("scarlet", "crimson"),
    "orange": ("orange",) * 4 + ("tangerine",),
    "yellow": ("yellow",) * 3 + ("golden", "lemon yellow"),
    "green": ("green",) * 4 + ("emerald",),
    "turquoise": ("turquoise",) * 3 + ("cyan", "aqua"),
    "blue": ("blue",) * 4 + ("royal blue",),
    "purple": ("purple",) * 3 + ("violet",),
    "pink": ("pink",) * 4 + ("rose",),
    "brown": ("brown",) * 4 + ("chocolate",),
    "black": ("black",) * 4 + ("jet black",),
    "white": ("white",) * 4 + ("snow white",),
    "grey": ("grey",) * 3 + ("gray", "gray"),
}
SIZES = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium sized", "medium size"),
    "large": ("large", "large", "big", "huge", "giant"),
}
PLACES = {
    "middle": ("in the middle", "in the center", "in the centre", "at the center", "centered"),
    "left": ("on the left", "at the left", "on the left side", "near the left edge", "to the left"),
    "right": ("on the right", "at the right", "on the right side", "near the right edge", "to the right"),
    "top": ("at the top", "near the top", "near the top edge", "in the upper half"),
    "bottom": ("at the bottom", "near the bottom", "near the bottom edge", "in the lower half"),
}
CORNERS = ("in the {} corner", "at the {}", "on the {}", "near the {} corner")
KINDS = (
    "a picture of",
    "a drawing of",
    "a painting of",
    "an image of",
    "a photo of",
    "an illustration of",
    "an icon of",
    "a poster of",
    "a sticker of",
    "a simple picture of",
    "a render of",
    "please draw",
    "draw",
    "there is",
    "we see",
    "this shows",
)
GROUNDS = (
    "on a {} background",
    "on a {} background",
    "on a {} background",
    "on {}",
    "in front of a {} background",
    "in front of a {} wall",
    "against a {} background",
    "against a {} backdrop",
    "over a {} background",
    "on a plain {} background",
    "on a solid {} background",
    "on a {} canvas",
    "on {} paper",
    "on a {} field",
    "with a {} background",
    "on a {} surface",
    "on a {} wall",
)
ENDS = (
    ", flat design",
    ", minimal",
    ", simple and clean",
    ", sharp edges",
    ", highly detailed",
    ", 4k",
    ", vector art",
    ", high quality",
    ", bright colours",
    ", beautiful",
    ", digital art",
    ", crisp",
)
STRAY = 0.04  # how often a caption holds a word of no language
ADJECTIVES = ("bright", "plain", "solid", "single", "nice", "lovely", "perfect")


def caption(seen: Scene, draw: random.Random) -> str:
    """What somebody could call the scene.  It always names the shape, nearly always both colours; size and position half the time.

    Now and then it holds a word that means nothing, so that those who read it learn to leave out what they do not know.
    """
    said = worded(
        seen.shape,
        seen.colour if draw.random() > 0.04 else "",
        seen.background if draw.random() > 0.08 else "",
        seen.size if draw.random() < 0.5 else "",
        seen.position if draw.random() < (0.3 if seen.position == "middle" else 0.75) else "",
        draw,
    )
    if draw.random() > STRAY:
        return said
    words = said.split()
    words.insert(draw.randint(0, len(words)), "".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 8))))
    return " ".join(words)


def worded(shape: str, colour: str, background: str, size: str, position: str, draw: random.Random) -> str:
    """A caption that says just that; "" is left out."""
    pick = draw.choice
    adjective = pick(ADJECTIVES) if draw.random() < 0.1 else ""
    words = " ".join(
        filter(None, (pick(SIZES[size]) if size else "", adjective, pick(TINTS[colour]) if colour else "", pick(NOUNS[shape])))
    )
    place = _place(position, draw) if position else ""
    tint = pick(TINTS[background]) if background else ""
    if tint and draw.random() < 0.08:
        return _ended(f"{_article(tint)} {tint} background with {_article(words)} {words} {place}", draw)
    ground = pick(GROUNDS).format(tint).replace(f" a {tint}", f" {_article(tint)} {tint}") if tint else ""
    where = [ground, place]
    if draw.random() < 0.5:
        where.reverse()
    kind = pick(KINDS) + " " if draw.random() < 0.3 else ""
    article = "the" if draw.random() < 0.05 else _article(words)
    if draw.random() < 0.06:
        kind = article = ""
    return _ended(f"{kind}{article} {words} {' '.join(filter(None, where))}", draw)


def captions(count: int, seed: int = 0) -> Iterator[str]:
    """`count` captions of any scenes; the same seed gives the same ones.  For the tokenizers."""
    draw = random.Random(seed)
    for _ in range(count):
        yield caption(scene(draw), draw)


def vocabulary() -> set[str]:
    """Every word of the language."""
    tables = (
        NOUNS,
        TINTS,
        SIZES,
        PLACES,
        {"": (*CORNERS, *KINDS, *GROUNDS, *ENDS, *ADJECTIVES, *COLOURS, "upper lower a an the with and")},
    )
    texts = " ".join(text for table in tables for texts in table.values() for text in texts)
    return set(texts.replace(",", " ").replace("{}", " ").split())


def _place(position: str, draw: random.Random) -> str:
    if position in PLACES:
        return draw.choice(PLACES[position])
    row, column = position.split()
    if draw.random() < 0.3:
        row = {"top": "upper", "bottom": "lower"}[row]
    return draw.choice(CORNERS).format(f"{row} {column}")


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _ended(text: str, draw: random.Random) -> str:
    return " ".join(text.split()) + (draw.choice(ENDS) if draw.random() < 0.12 else "")
