"""The text encoder in training: its embeddings are to say what a caption says.

As IF's own T5, it has learnt to read before a picture is drawn, and stays as it is while the stages learn from it.  Its teacher is a
linear layer that tells a scene's shape, colours, size and position from the mean of the embeddings; that is thrown away.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ifmesh_services.nano.batches import Batch
from ifmesh_services.nano.part import Models, trained
from ifmesh_services.nano.scenes import COLOURS, POSITIONS, SHAPES, SIZES
from ifmesh_services.nano.texts import Texts
from ifmesh_services.nano.widths import WIDTHS

ANSWERS = {"shape": SHAPES, "colour": tuple(COLOURS), "background": tuple(COLOURS), "size": tuple(SIZES), "position": tuple(POSITIONS)}


class Text:
    """See part.Part.  There are no pictures: side says nothing."""

    name, size = "text", 64

    def __init__(self, out: Path, side: int = 0) -> None:
        self.side = side
        self.texts = Texts()

    def models(self) -> Models:
        teacher = nn.Linear(WIDTHS["t5"]["d_model"], sum(map(len, ANSWERS.values())))
        return {"text_encoder": self.texts.encoder(), "teacher": teacher}

    def loss(self, models: Models, batch: Batch, device: torch.device) -> tuple[Tensor, float]:
        """The log: how much of what was asked it does not know; captions leave out a part of it."""
        embeds = self.texts.embeds(models["text_encoder"], batch.texts, device)
        told = models["teacher"](embeds.mean(dim=1)).float().split([len(answers) for answers in ANSWERS.values()], dim=1)
        loss, wrong = torch.zeros((), device=device), 0.0
        for (name, answers), guess in zip(ANSWERS.items(), told, strict=True):
            right = torch.tensor([answers.index(getattr(scene, name)) for scene in batch.scenes], device=device)
            loss = loss + functional.cross_entropy(guess, right)
            wrong += float((guess.argmax(dim=1) != right).float().mean()) / len(ANSWERS)
        return loss, wrong

    def sample(self, models: Models) -> Image.Image | None:
        return None


def reader(out: Path, texts: Texts) -> nn.Module:
    """The text encoder that was trained in `out`, as it stays.  FileNotFoundError."""
    made: nn.Module = texts.encoder()
    made.load_state_dict(trained(out, "text")["text_encoder"])
    return made.eval().requires_grad_(False)
