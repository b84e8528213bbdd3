"""The encoder: prompt, negative and style to T5 embeddings, what it could read of them, and the request's noise source."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import T5EncoderModel, T5Tokenizer

from ifmesh.cascade import EMBEDS, IF, RNG, TOKENS
from ifmesh.errors import Misconfigured
from ifmesh.request import Request
from ifmesh.stage import Advance, Bag, Foreign, Setup

from . import loading, offload, recipes, terms
from .cache import Cache
from .pooled import Pooling
from .tensors import to_blob

NAME = "encoder"
LENGTH = 77  # tokens.  T5 could read more; IF was trained with this many
CACHE = 64  # MB: a hundred texts of T5-XXL in half precision
MOST = 1 << 20  # MB
log = logging.getLogger("ifmesh")  # the worker's, when it has one


@dataclass(frozen=True, slots=True)
class Text:
    """embeds: [1, 77, C], on the CPU.  counts: [tokens of the whole text, those that are read, those the vocabulary does not know]."""

    embeds: torch.Tensor
    counts: list[int]

    @property
    def nbytes(self) -> int:
        return self.embeds.nbytes


class Encoder:
    """Gives embeds [texts, 77, C] and tokens [texts, 3] (rows: negative, prompt (, style)), and rng unless the client brings one.

    One step.

    Exact: bit-identical to `IFPipeline.encode_prompt(clean_caption=False)`, each text in a call of its own, padded to 77 tokens, since
    the UNets attend to the padding too.  Pooled: one call for all texts in hand, of `rows` texts if that is set, whatever else is in it.

    Options: mode, slots, rows (as the drawing stages', rows counting texts), cache (MB of texts that are not encoded again; the empty one
    never is), and those of terms.py.
    """

    slots: int = 1

    def weighs(self, setup: Setup) -> int:
        """Bytes of its weights in memory, without loading them."""
        how = terms.Terms.read(NAME, setup.options, setup.device)
        repo, dtype = recipes.read(setup.cascade).repos[NAME], loading.dtype_of(setup, text=True)
        return loading.weight(repo, "text_encoder", T5EncoderModel, dtype, how)

    def load(self, setup: Setup) -> str:
        """Misconfigured also when the weights give no finite embeddings: better no encoder than one that draws noise."""
        options = setup.options or {}
        pooling = Pooling.read(NAME, options, beside=("cache", *terms.OPTIONS[NAME]))
        how = loading.agreed(NAME, setup)
        limit = _megabytes(options)
        repo = recipes.read(setup.cascade).repos[NAME]
        self._dtype = loading.dtype_of(setup, text=True)
        self._device = torch.device(setup.device)
        self._tokenizer: T5Tokenizer = loading.component(repo, "tokenizer", T5Tokenizer, terms=how)
        self._model: T5EncoderModel = loading.component(repo, "text_encoder", T5EncoderModel, self._dtype, setup.device, how)
        self._admitted: dict[str, Request] = {}
        self._pooled, self._rows, self.slots = pooling.mode == "pooled", pooling.rows, pooling.slots
        # before the first call: on a CPU that repacks 4 bit weights
        made = loading.numeric_class(setup, self._dtype, self._model, terms=how) + pooling.numeric
        self._class = made
        self.cache: Cache[Text] = Cache(limit, frozenset({self._key("")}))
        try:
            self._texts([""])
        except ArithmeticError as error:
            said = ", ".join(f"{key} = {options[key]!r}" for key in ("quantize", "variant") if options.get(key)) or "the files"
            raise Misconfigured(f"{repo}: text_encoder: {error}; check {said}, or use dtype 'fp32' or 'bf16'") from error
        offload.leave()
        return made

    def admit(self, job: str, request: Request, bag: Bag, saved: Bag | None = None) -> int:
        if saved is not None:
            raise Foreign(f"{NAME} saves nothing")
        self._admitted[job] = request
        return 1

    def step(self, paused: Collection[str] = ()) -> list[Advance]:
        admitted = {job: self._admitted.pop(job) for job in list(self._admitted) if job not in paused}
        if not admitted:
            return []
        before = self.cache.hits, self.cache.misses
        wanted = [text for request in admitted.values() for text in texts_of(request)]
        texts = self._texts(wanted) if self._pooled else None
        made = []
        for job, request in admitted.items():
            read = texts or self._texts(texts_of(request))
            made.append(Advance(job, 1, 1, _output(request, [read[plain(text)] for text in texts_of(request)])))
        offload.leave()
        hits, misses = self.cache.hits - before[0], self.cache.misses - before[1]
        log.info("%d of %d texts were known; cache: %s", hits, hits + misses, self.cache, extra={"job": next(iter(admitted))})
        return made

    def save(self, job: str) -> Bag | None:
        return None

    def drop(self, job: str) -> None:
        self._admitted.pop(job, None)

    def _key(self, text: str) -> tuple[str, str]:
        """Whoever computes otherwise computes something else.  text: plain."""
        return self._class, text

    def _texts(self, wanted: Sequence[str]) -> Mapping[str, Text]:
        """Each of the texts, plain, once."""
        found: dict[str, Text | None] = {}
        for text in map(plain, wanted):
            if text not in found:
                found[text] = self.cache.get(self._key(text))
        missing = [text for text, known in found.items() if known is None]
        size = (self._rows or len(missing)) if self._pooled else 1
        for begin in range(0, len(missing), max(1, size)):
            part = missing[begin : begin + size]
            for text, embeds in zip(part, self._embeds(part), strict=True):
                found[text] = Text(embeds, self._counts(text))
                self.cache.put(self._key(text), found[text])  # type: ignore[arg-type]  # it has just been made
        return {text: known for text, known in found.items() if known is not None}

    def _counts(self, text: str) -> list[int]:
        ids = self._tokenizer(text, verbose=False).input_ids  # verbose: it warns of every text above 512 tokens
        return [len(ids), min(len(ids), LENGTH), ids.count(self._tokenizer.unk_token_id)]

    @torch.no_grad()
    def _embeds(self, texts: list[str]) -> list[torch.Tensor]:
        """[1, 77, C] of each, in one call.  ArithmeticError: they are not finite."""
        spare = self._rows - len(texts) if self._pooled and self._rows else 0
        tokens: Any = self._tokenizer(
            [*texts, *[""] * spare], padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        )
        ids, mask = tokens.input_ids.to(self._device), tokens.attention_mask.to(self._device)
        model: Any = self._model
        embeds: torch.Tensor = model(ids, attention_mask=mask)[0][: len(texts)].to(self._dtype).cpu()
        if not embeds.isfinite().all():
            raise ArithmeticError(f"its embeddings in {self._dtype} are not finite")
        return [embeds] if len(texts) == 1 else [row[None].clone() for row in embeds]  # a view would keep its neighbours


def texts_of(request: Request) -> tuple[str, ...]:
    """The texts of a request, in the order of its embeddings."""
    return (request.negative, request.prompt, *filter(None, (request.style,)))


def plain(text: str) -> str:
    """As the pipeline hands it to the tokenizer."""
    return text.lower().strip()


def _output(request: Request, read: Sequence[Text]) -> Bag:
    """read: its texts, see `texts_of`."""
    made = {
        EMBEDS: torch.cat([text.embeds for text in read]),
        TOKENS: torch.tensor([text.counts for text in read]),
        RNG: torch.Generator("cpu").manual_seed(request.seed).get_state(),
    }
    return {blob.name: to_blob(made[blob]) for blob in IF[NAME].gives(request)}


def _megabytes(options: Mapping[str, object]) -> int:
    """Bytes."""
    said = options.get("cache", CACHE)
    if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said <= MOST:
        raise Misconfigured(f"services.{NAME}.options.cache: {said!r}: a whole number of MB from 0 to {MOST}")
    return said * 1_000_000
