"""The encoder: prompt and negative to T5 embeddings, and the request's noise source."""

from __future__ import annotations

import torch
from transformers import T5EncoderModel, T5Tokenizer

from ifmesh.cascade import EMBEDS, RNG
from ifmesh.protocol import Request
from ifmesh.stage import Advance, Bag, Setup

from . import loading, recipes
from .tensors import to_blob

TOKENS = 77  # T5 could read more; IF was trained with this many


class Encoder:
    """Gives embeds [2, 77, C] (rows: negative, prompt) and rng.  One step.

    Bit-identical to `IFPipeline.encode_prompt(clean_caption=False)`: each text in a call of its own, padded to 77 tokens, since the
    UNets attend to the padding too.
    """

    slots: int = 1

    def load(self, setup: Setup) -> str:
        repo = recipes.read(setup.cascade).repos["encoder"]
        dtype = loading.dtype_of(setup)
        self._device = torch.device(setup.device)
        self._tokenizer: T5Tokenizer = loading.tokenizer(repo, T5Tokenizer)
        self._model: T5EncoderModel = loading.component(repo, "text_encoder", T5EncoderModel, dtype, setup.device)
        self._admitted: dict[str, Request] = {}
        self._negative: tuple[str, torch.Tensor] | None = None  # the last one: mostly the same from request to request
        return loading.numeric_class(setup, dtype, self._model)

    def admit(self, job: str, request: Request, bag: Bag) -> int:
        self._admitted[job] = request
        return 1

    def step(self) -> list[Advance]:
        admitted, self._admitted = self._admitted, {}
        return [Advance(job, 1, 1, self._output(request)) for job, request in admitted.items()]

    def drop(self, job: str) -> None:
        self._admitted.pop(job, None)

    def _output(self, request: Request) -> Bag:
        prompt = self._embeds(request.prompt)
        if self._negative is None or self._negative[0] != request.negative:
            self._negative = (request.negative, self._embeds(request.negative))
        source = torch.Generator("cpu").manual_seed(request.seed)
        return {EMBEDS.name: to_blob(torch.cat([self._negative[1], prompt])), RNG.name: to_blob(source.get_state())}

    @torch.inference_mode()
    def _embeds(self, text: str) -> torch.Tensor:
        """[1, 77, C]"""
        tokens = self._tokenizer(text.lower().strip(), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device)
        embeds: torch.Tensor = self._model(ids, attention_mask=mask)[0]
        return embeds.to(self._model.dtype)
