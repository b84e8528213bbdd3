"""torch.compile while a model is loaded, so that no job waits for it.

Afterwards nothing is compiled in this process: a call of another shape than those declared runs uncompiled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from ifmesh.errors import Misconfigured

LENGTH = 77  # tokens of every text
GUIDED = 2  # rows: negative, prompt


def compiled(model: Any, shapes: Iterable[tuple[int, int]], asked: str) -> Any:
    """The model, compiled in place for guided pictures of those (width, height), or for one text; its weights keep their names.

    asked: the option's name.  Misconfigured: there is no compiler, or the model cannot be compiled.
    """
    drawing = isinstance(model, UNet2DConditionModel)
    with torch.compiler.set_stance("default"):
        model.compile(dynamic=False)
        try:
            for width, height in shapes if drawing else [(0, 0)]:
                for _ in range(2):  # the first call compiles, the second finds that nothing is left to do
                    _draw(model, width, height) if drawing else _read(model)
        except Exception as error:  # whatever the compiler says
            why = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Misconfigured(f"{asked}: {type(model).__name__}: {why}; install a C++ compiler (g++), or leave it out") from error
    torch.compiler.set_stance("eager_on_recompile")
    return model


def _draw(unet: Any, width: int, height: int) -> None:
    """A call as the stages make them: see denoising.exact.  What they prepare outside of inference mode is made outside of it."""
    said, device, dtype = unet.config, unet.device, unet.dtype
    embeds = torch.zeros(GUIDED, LENGTH, said.encoder_hid_dim or said.cross_attention_dim, device=device, dtype=dtype)
    noisy = said.class_embed_type is not None or said.num_class_embeds is not None
    labels = torch.tensor([0], device=device).repeat(GUIDED) if noisy else None
    t = torch.tensor([0])[0]
    with torch.no_grad():
        x = torch.zeros(GUIDED, said.in_channels, height, width, device=device, dtype=dtype)
        unet(x, t, encoder_hidden_states=embeds, class_labels=labels, return_dict=False)


def _read(text_encoder: Any) -> None:
    with torch.no_grad():
        ids = torch.zeros(1, LENGTH, dtype=torch.int64, device=text_encoder.device)
        if text_encoder.config.model_type == "t5":
            text_encoder(ids, attention_mask=torch.ones_like(ids))
        else:
            text_encoder(ids, attention_mask=None)
