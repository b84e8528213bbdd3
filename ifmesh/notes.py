"""What the encoder told of the texts: how much of them it read, and how much of that it knows.  Pure."""

from __future__ import annotations

import struct

from ifmesh.stage import Tensor

UNKNOWN = 0.2  # share of unknown tokens above which the texts are probably not what this encoder was trained on


def notes(tokens: Tensor) -> tuple[str, ...]:
    """What a user should know, in sentences; () when all is well.

    tokens: I64 [2 or 3, 3], rows negative, prompt, style; columns: tokens of the whole text, those that the encoder reads, unknown ones
    among all.
    """
    rows = dict(zip(("negative prompt", "prompt", "style"), struct.iter_unpack("<3q", tokens.data), strict=False))
    said = []
    for name, (whole, read, unknown) in sorted(rows.items(), key=lambda row: row[0] != "prompt"):
        if whole > read:
            said.append(f"the {name} has {whole} tokens; the encoder reads the first {read}")
        if whole > 0 and unknown / whole > UNKNOWN:
            share = f"{100 * unknown / whole:.0f} % of the {name}'s tokens"
            said.append(f"{share} are unknown to the encoder: it may not know this language or these names")
    return tuple(said)
