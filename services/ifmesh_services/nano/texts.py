"""The trained cascade's two text encoders and their tokenizers, which learn their pieces from the caption language."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from ifmesh_services.mending import quiet
from ifmesh_services.nano import builder
from ifmesh_services.nano.tokenizers import write_clip, write_t5
from ifmesh_services.nano.widths import WIDTHS
from ifmesh_services.nano.wording import captions

LENGTH = 77  # tokens, padded: the UNets attend to the padding
T5_TEXTS, CLIP_TEXTS = 3000, 1000  # captions, as builder.build reads them


class Texts:
    """T5's tokenizer of the caption language."""

    @property
    def tokenizer(self) -> Any:
        return _t5()

    def encoder(self) -> Any:
        """Of random weights."""
        return T5EncoderModel(T5Config(vocab_size=builder.padded(len(self.tokenizer)), **builder.settled(WIDTHS)["t5"]))

    def embeds(self, encoder: Any, texts: Sequence[str], device: torch.device) -> Tensor:
        """[B, 77, C], as the pipelines have them."""
        tokens: Any = self.tokenizer(list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        made: Tensor = encoder(tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device))[0]
        return made


class ShortTexts:
    """CLIP's, for the upscaler."""

    @property
    def tokenizer(self) -> Any:
        return _clip()

    def encoder(self) -> Any:
        """Of random weights."""
        return CLIPTextModel(CLIPTextConfig(vocab_size=len(self.tokenizer), **builder.settled(WIDTHS)["clip"]))

    def embeds(self, encoder: Any, texts: Sequence[str], device: torch.device) -> Tensor:
        """[B, 77, C], as the pipeline has them."""
        tokens: Any = self.tokenizer(list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        made: Tensor = encoder(tokens.input_ids.to(device))[0]
        return made


@cache
def _t5() -> Any:
    return _read(T5Tokenizer, lambda folder: write_t5(folder, captions(T5_TEXTS)))


@cache
def _clip() -> Any:
    return _read(CLIPTokenizer, lambda folder: write_clip(folder, captions(CLIP_TEXTS)))


def _read(kind: Any, write: Callable[[Path], object]) -> Any:
    with tempfile.TemporaryDirectory() as above, quiet():
        folder = Path(above) / "tokenizer"
        write(folder)
        return kind.from_pretrained(str(folder))
