"""The built-in cascade's tokenizers, written as the hub has them: T5's spiece.model, CLIP's vocab.json and merges.txt."""

from __future__ import annotations

import io
import json
import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import sentencepiece

EXTRA_IDS = 100
T5_PIECES = 900  # at most; so small a grammar yields some 270.  The extra ids follow them
CLIP_MERGES = 700
PRINTABLE = string.ascii_letters + string.digits + string.punctuation
START, END = "<|startoftext|>", "<|endoftext|>"


def write_t5(folder: Path, captions: Iterable[str]) -> int:
    """spiece.model, of the captions' pieces, and its two JSON files, no tokenizer.json; the number of ids (pad 0, eos 1, unk 2)."""
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=model,
        vocab_size=T5_PIECES,
        hard_vocab_limit=False,
        required_chars=PRINTABLE,  # so that an unknown word is spelled out, not <unk>
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,  # the same file every time
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    extra = [f"<extra_id_{i}>" for i in range(EXTRA_IDS)]
    special = {"additional_special_tokens": extra, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    more = {"extra_ids": EXTRA_IDS, "model_max_length": 512, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer"}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", special | more)
    return int(sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()) + EXTRA_IDS


def write_clip(folder: Path, captions: Iterable[str]) -> int:
    """vocab.json and merges.txt, of the captions' words, and two JSON files; the number of ids (start, end the last two, pad "!", 0)."""
    folder.mkdir(parents=True)
    words: Counter[str] = Counter()
    for caption in captions:
        words.update("".join(c if c.isalpha() else " " for c in caption).split())
    merges = _merges(words, CLIP_MERGES)
    letters = _byte_letters()
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), START, END]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(tokens)}, sort=False)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": "!", "unk_token": END}
    more = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", special | more)
    return len(tokens)


def write_json(path: Path, data: object, sort: bool = True) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=sort, ensure_ascii=False) + "\n", encoding="utf-8")


def _byte_letters() -> list[str]:
    """One visible character for each byte, as GPT-2's byte-level BPE has them; "!" is first."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(len(hidden))]


def _merges(words: Counter[str], most: int) -> list[tuple[str, str]]:
    """Byte-pair encoding: the most frequent neighbours become one token, again and again.  Ties go to the lesser pair."""
    split = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    found: list[tuple[str, str]] = []
    while len(found) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        split = {word: _joined(parts, best) for word, parts in split.items()}
    return found


def _joined(parts: Iterable[str], pair: tuple[str, str]) -> tuple[str, ...]:
    done: list[str] = []
    for part in parts:
        if done and (done[-1], part) == pair:
            done[-1] += part
        else:
            done.append(part)
    return tuple(done)
