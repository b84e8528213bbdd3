"""The trained cascade's sizes: what is different in it from the built-in one of random weights, see builder.settled."""

from __future__ import annotations

from typing import Any

WIDTHS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 96, "d_kv": 24, "d_ff": 192, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4},
    "one": {
        "block_out_channels": [16, 16, 32, 96, 128],
        "down_block_types": [*["ResnetDownsampleBlock2D"] * 3, *["SimpleCrossAttnDownBlock2D"] * 2],
        "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, *["ResnetUpsampleBlock2D"] * 3],
        "norm_num_groups": 2,
        "attention_head_dim": 32,
        "cross_attention_dim": 96,
        "encoder_hid_dim": 96,
        "addition_embed_type_num_heads": 4,
    },
    "two": {
        "block_out_channels": [16, 32, 48, 64, 64],
        "norm_num_groups": 2,
        "attention_head_dim": 32,
        "cross_attention_dim": 64,
        "encoder_hid_dim": 96,
        "time_embedding_dim": 96,
    },
    "x4": {"block_out_channels": [16, 32, 48, 64], "norm_num_groups": 2},
    "vae": {"block_out_channels": [16, 24, 32], "norm_num_groups": 2},
}
