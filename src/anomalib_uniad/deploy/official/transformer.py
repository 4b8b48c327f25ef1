# SPDX-License-Identifier: Apache-2.0
"""Names of the weights in the authors' reconstruction module."""

import re
from collections.abc import Mapping

import torch

# Name in the authors' `reconstruction` module -> name in `ReconstructionTransformer`.
_RENAMES = (
    (r"^input_proj\.", "input_projection."),
    (r"^output_proj\.", "output_projection."),
    (r"^pos_embed\.(row|col)_embed\.weight$", r"position.\1_embed"),
    (r"^transformer\.encoder\.", "encoder."),
    (r"^transformer\.decoder\.", "decoder."),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.self_attention."),
    (r"^(decoder\.layers\.\d+)\.self_attn\.", r"\1.encoder_attention."),
    (r"^(decoder\.layers\.\d+)\.multihead_attn\.", r"\1.previous_attention."),
    (r"^(decoder\.layers\.\d+)\.learned_embed\.weight$", r"\1.query"),
    (r"\.linear1\.", ".feedforward.0."),
    (r"\.linear2\.", ".feedforward.3."),
)


def rename_reconstruction(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the weights of the authors' reconstruction module the names that they have here.

    In the authors' decoder ``self_attn`` is the attention to the encoder's output and ``multihead_attn`` the
    attention to the previous layer.

    Args:
        state (Mapping[str, torch.Tensor]): State dict with the authors' names, without any
            ``module.reconstruction.`` prefix.

    Returns:
        dict[str, torch.Tensor]: State dict of :class:`anomalib_uniad.model.ReconstructionTransformer`.
    """
    renamed = {}
    for key, tensor in state.items():
        name = key
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
