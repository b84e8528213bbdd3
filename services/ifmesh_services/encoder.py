"""The encoder: prompt and negative to T5 embeddings, what it could read of them, and the request's noise source."""

from __future__ import annotations

import torch
from transformers import T5EncoderModel, T5Tokenizer

from ifmesh.cascade import EMBEDS, IF, RNG, TOKENS
from ifmesh.protocol import Request
from ifmesh.stage import Advance, Bag, Setup

from . import loading, recipes
from .tensors import to_blob

LENGTH = 77  # tokens.  T5 could read more; IF was trained with this many


class Encoder:
    """Gives embeds [2, 77, C] and tokens [2, 3] (rows: negative, prompt), and rng unless the client brings one.  One step.

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
        self._negative: tuple[str, torch.Tensor, list[int]] | None = None  # the last one: mostly the same from request to request
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
        if self._negative is None or self._negative[0] != request.negative:
            self._negative = (request.negative, self._embeds(request.negative), self._counts(request.negative))
        _, embeds, counts = self._negative
        made = {
            EMBEDS: torch.cat([embeds, self._embeds(request.prompt)]),
            TOKENS: torch.tensor([counts, self._counts(request.prompt)]),
            RNG: torch.Generator("cpu").manual_seed(request.seed).get_state(),
        }
        return {blob.name: to_blob(made[blob]) for blob in IF["encoder"].gives(request)}

    def _counts(self, text: str) -> list[int]:
        """[tokens of the whole text, its end included; those that are read; those of all that the vocabulary does not know]"""
        ids = self._tokenizer(text.lower().strip(), verbose=False).input_ids  # verbose: it warns of every text above 512 tokens
        return [len(ids), min(len(ids), LENGTH), ids.count(self._tokenizer.unk_token_id)]

    @torch.inference_mode()
    def _embeds(self, text: str) -> torch.Tensor:
        """[1, 77, C]"""
        tokens = self._tokenizer(text.lower().strip(), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device)
        embeds: torch.Tensor = self._model(ids, attention_mask=mask)[0]
        return embeds.to(self._model.dtype)
