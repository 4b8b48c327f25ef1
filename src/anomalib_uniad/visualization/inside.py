# SPDX-License-Identifier: Apache-2.0
"""What is inside a transformer: where its tokens look, and what its queries hold."""

from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from anomalib_uniad.errors import InputError
from anomalib_uniad.inference.heatmap import draw_heatmap, outlined
from anomalib_uniad.model import UniAD
from anomalib_uniad.model.components import NeighborMaskedAttention
from anomalib_uniad.model.torch_model import ReconstructionTransformer

from .feature_decoder import FeatureDecoder

Panels = list[tuple[str, Image.Image]]


def transformer_of(model: UniAD) -> ReconstructionTransformer:
    """The transformer of a model.

    Raises:
        ValueError: If it has none, or looks at tiles.
    """
    network = model.model
    if not isinstance(network.transformer, ReconstructionTransformer):
        raise InputError(
            f"A model with reconstruction={model.hparams['reconstruction']} has neither attention nor queries."
        )
    if network.tiles is not None:
        raise InputError("A model with tiles looks at each tile alone: attention and queries are not drawn.")
    return network.transformer


def attention_of(model: UniAD, features: torch.Tensor) -> dict[str, torch.Tensor]:
    """How tokens attend to each other.

    Args:
        model (UniAD): The model, in evaluation mode.
        features (torch.Tensor): Normalised ones of one image, ``(1, C, h, w)``.

    Returns:
        dict[str, torch.Tensor]: Name of the attention, from the input to the output -> weights ``(heads, N, N)``.
    """
    transformer, found = transformer_of(model), {}
    names = {
        module: name for name, module in transformer.named_modules() if isinstance(module, NeighborMaskedAttention)
    }

    def look(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        part, _, number, kind = names[module].split(".")
        second = {
            "self_attention": "",
            "encoder_attention": ", first attention",
            "previous_attention": ", second attention",
        }[kind]
        found[f"{part} {int(number) + 1}{second}"] = module.weights(*arguments)[0]

    hooks = [module.register_forward_pre_hook(look) for module in names]
    try:
        with torch.no_grad():
            model.model.reconstruct(features)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def draw_attention(
    model: UniAD, features: torch.Tensor, image: np.ndarray, point: tuple[float, float]
) -> list[tuple[str, Panels]]:
    """Draw where the token at a point looks: a row for each attention, a panel for the mean and for each head.

    Args:
        model (UniAD): The model, in evaluation mode.
        features (torch.Tensor): Normalised ones of one image, ``(1, C, h, w)``.
        image (np.ndarray): What the model sees of it, ``(H, W, 3)``, uint8, of any size.
        point (tuple[float, float]): Place from the left and from the top, as parts of width and height of that, from 0
            to 1.

    Returns:
        list[tuple[str, Panels]]: Name and panels of each attention. What the mask hides is outlined in black, the token
        itself in white; colours are relative to the largest weight of a panel.
    """
    height, width = model.model.grid_size
    row, column = (
        min(int(place * length), length - 1) for place, length in zip(point[::-1], (height, width), strict=True)
    )
    rows = []
    modules = [module for module in transformer_of(model).modules() if isinstance(module, NeighborMaskedAttention)]
    for (name, weights), module in zip(attention_of(model, features).items(), modules, strict=True):
        own = weights[:, row * width + column].unflatten(-1, (height, width))  # (heads, h, w)
        hidden = None if module.visible is None else ~module.visible[row * width + column].unflatten(0, (height, width))
        titles = ["mean of heads", *(f"head {number + 1}" for number in range(len(own)))]
        panels = []
        for title, part in zip(titles, torch.cat([own.mean(dim=0, keepdim=True), own]), strict=True):
            levels = cv2.resize((part / part.max()).numpy(), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            pixels = np.array(draw_heatmap(image, levels))
            if hidden is not None:
                pixels = _around(pixels, hidden.numpy(), (0, 0, 0))
            itself = np.zeros((height, width), bool)
            itself[row, column] = True
            panels.append((title, Image.fromarray(_around(pixels, itself, (255, 255, 255)))))
        rows.append((name, panels))
    return rows


def _around(pixels: np.ndarray, tokens: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """An image with the outline of some tokens of the grid ``(h, w)``."""
    large = cv2.resize(tokens.astype(np.uint8), pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return outlined(pixels, large, colour)


def draw_queries(model: UniAD, decoder: FeatureDecoder, seed: int = 0) -> Panels:
    """Render what the learned query of each layer of the decoder holds, beside queries that hold nothing.

    A query is projected to features as the output of the last layer is.

    Args:
        model (UniAD): The model.
        decoder (FeatureDecoder): Renders its features.
        seed (int): Of the random query. Defaults to ``0``.

    Returns:
        Panels: A random query, as they all are before a training; the mean of the first layer's, at all places; each
        learned one.

    Raises:
        ValueError: If no layer has a learned query.
    """
    transformer = transformer_of(model)
    layers: list[Any] = list(transformer.decoder.layers)
    learned = {f"layer {row + 1}": layer.query for row, layer in enumerate(layers) if layer.query is not None}
    if not learned:
        raise InputError("A model with decoder_query=none has no queries.")
    first = next(iter(learned.values()))
    random = torch.randn(first.shape, generator=torch.Generator().manual_seed(seed))
    queries = {"random": random, "mean": first.mean(dim=0, keepdim=True).expand_as(first), **learned}
    panels = []
    for name, query in queries.items():
        with torch.no_grad():
            tokens = transformer.output_projection(transformer.decoder.norm(query))  # (N, C)
            features = model.model.denormalise(tokens.T.unflatten(1, model.model.grid_size)[None])
            image = decoder(features)[0]
        panels.append((name, to_pil_image(image)))
    return panels
