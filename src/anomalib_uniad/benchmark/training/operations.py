# SPDX-License-Identifier: Apache-2.0
"""How many operations a training step needs, and how many the machine can do."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from anomalib_uniad.model import UniAD

from .lightning_run import synchronize


@dataclass(frozen=True)
class Operations:
    """Operations of the matrix products of a training step, forward and backward; an addition counts as one.

    Attributes:
        attention (int): Products of queries with keys and of attention weights with values: they grow as the square
            of the number of tokens, which is the fourth power of the length of an image's side.
        linear (int): Everything else: it grows as the number of tokens.
    """

    attention: int
    linear: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.attention + self.linear

    @property
    def attention_share(self) -> float:
        """Share of attention."""
        return self.attention / self.total


def operations(
    batch: int,
    tokens: int,
    channels: int = 272,
    hidden_dim: int = 256,
    feedforward_dim: int = 1024,
    encoder_layers: int = 4,
    decoder_layers: int = 4,
) -> Operations:
    """Count the operations of a training step, with the learned position embedding.

    Args:
        batch (int): Images ``B``.
        tokens (int): Tokens ``N`` per image.
        channels (int): Channels ``C`` of the features. Defaults to ``272``.
        hidden_dim (int): Channels ``D`` inside. Defaults to ``256``.
        feedforward_dim (int): Channels inside the feed-forward parts. Defaults to ``1024``.
        encoder_layers (int): Layers of the encoder. Defaults to ``4``.
        decoder_layers (int): Layers of the decoder. Defaults to ``4``.

    Returns:
        Operations: The numbers.

    Example:
        >>> step = operations(batch=8, tokens=14 * 14)
        >>> f"{step.total / 1e9:.1f} GFLOP, {step.attention_share:.0%} attention"
        '81.2 GFLOP, 14% attention'
    """
    rows, d = batch * tokens, hidden_dim
    attentions = encoder_layers + 2 * decoder_layers
    per_image = (
        attentions * 4 * d * d  # queries, keys, values and result
        - decoder_layers * d * d  # but the decoder's queries are the same for all images
        + (encoder_layers + decoder_layers) * 2 * d * feedforward_dim
        + channels * d  # output projection
    )
    per_batch = attentions * 2 * d * d + decoder_layers * d * d  # position, decoder's queries
    # Backward: the gradient of each factor costs as much as the product; the features need none.
    linear = 3 * 2 * (rows * per_image + tokens * per_batch) + 2 * 2 * rows * channels * d
    attention = 3 * attentions * 2 * 2 * batch * tokens * tokens * d
    return Operations(attention, linear)


def operations_of(model: UniAD, batch: int) -> Operations:
    """Count the operations of a training step of a model.

    Args:
        model (UniAD): The model, with learned position embedding.
        batch (int): Images.
    """
    transformer: Any = model.model.transformer
    return operations(
        batch=batch,
        tokens=math.prod(model.model.grid_size),
        channels=transformer.input_projection.in_features,
        hidden_dim=transformer.input_projection.out_features,
        feedforward_dim=transformer.encoder.layers[0].feedforward[0].out_features,
        encoder_layers=len(transformer.encoder.layers),
        decoder_layers=len(transformer.decoder.layers),
    )


def half_attention_tokens(share: float = 0.5) -> int:
    """Tokens per image from which attention has a share of the operations of the paper's model.

    Args:
        share (float): The share. Defaults to ``0.5``.

    Example:
        >>> half_attention_tokens(0.5)
        1209
    """
    one = operations(batch=8, tokens=1000)
    return math.ceil(1000 * one.linear / one.attention * share / (1 - share))


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Measure operations per second of matrix products: the best of a large one and one as in the model.

    Args:
        device (torch.device): Where.
        dtype (torch.dtype): Type of the factors.
        seconds (float): About how long to measure each size. Defaults to ``1.0``.

    Returns:
        float: Operations per second.
    """
    large = 8192 if device.type == "cuda" else 2048
    best = 0.0
    for rows, inner, columns in ((large, large, large), (8 * 196, 256, 1024)):
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(inner, columns, device=device, dtype=dtype)
        for _ in range(3):
            left @ right
        synchronize(device)
        end, repeats = time.perf_counter() + seconds, 10 if device.type == "cuda" else 1
        times: list[float] = []
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            for _ in range(repeats):
                left @ right
            synchronize(device)
            times.append((time.perf_counter() - start) / repeats)
        best = max(best, 2 * rows * inner * columns / min(times))  # what the machine can do when nothing disturbs it
    return best
