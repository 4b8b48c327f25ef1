# SPDX-License-Identifier: Apache-2.0
"""UniAD in plain torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F

from anomalib_uniad.checks import check_at_least, check_choice, check_fraction
from anomalib_uniad.errors import InputError

from .anomaly_map import AnomalyMap, AnomalyScore, ImageScore
from .components import (
    Backbone,
    FeatureJitter,
    FeatureNorm,
    LayerwiseQueryDecoder,
    LearnedPosition,
    MultiScaleNeck,
    NeighborMaskedEncoder,
    SinePosition,
)
from .components.baselines import ReconstructionCNN, ReconstructionMLP
from .components.decoder import AttentionTarget, DecoderQuery, check_attention
from .components.neck import FeatureResize
from .components.padding import BackbonePadding, PaddingMode
from .components.tiles import Tiles
from .products import Judged, Products

PositionEmbedding = Literal["learned", "sine"]
FeatureNormMode = Literal["none", "standard"]
Reconstruction = Literal["uniad", "transformer", "cnn", "mlp"]
_PIXELS_AT_ONCE = 2 * 256 * 256
"""Of images that the backbone gets at a time, on a processor.

Of more, the maps between its layers are so large that Linux takes them back when they are freed, and clears the same
memory for the next layer.
"""


class ReconstructionTransformer(nn.Module):
    """What UniAD trains: reconstructs tokens through encoder and layer-wise query decoder.

    Args:
        in_channels (int): Channels ``C`` of the tokens.
        grid_size (tuple[int, int]): Height ``h`` and width ``w`` of the token grid; ``N = h * w``.
        hidden_dim (int): Channels ``D`` inside. Defaults to ``256``.
        num_heads (int): Attention heads. Defaults to ``8``.
        num_encoder_layers (int): Encoder layers. Defaults to ``4``.
        num_decoder_layers (int): Decoder layers. Defaults to ``4``.
        feedforward_dim (int): Channels inside the feed-forward parts. Defaults to ``1024``.
        dropout (float): Dropout. Defaults to ``0.1``.
        position_embedding (str): ``"learned"`` or ``"sine"``. Defaults to ``"learned"``.
        neighbor_size (tuple[int, int]): Hidden window, in tokens. Defaults to ``(7, 7)``.
        neighbor_mask (tuple[bool, bool, bool]): Where it is hidden: encoder, first and second attention of the decoder.
            Defaults to ``(True, True, True)``.
        decoder_query (str): Which layers of the decoder have a learned query, see :class:`LayerwiseQueryDecoder`.
            Defaults to ``"layerwise"``.
        decoder_attention (Sequence[str]): What the two attentions of its layers attend to.
            Defaults to ``("encoder", "previous")``.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        grid_size: tuple[int, int],
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 4,
        num_decoder_layers: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        position_embedding: PositionEmbedding = "learned",
        neighbor_size: tuple[int, int] = (7, 7),
        neighbor_mask: tuple[bool, bool, bool] = (True, True, True),
        decoder_query: DecoderQuery = "layerwise",
        decoder_attention: Sequence[AttentionTarget] = ("encoder", "previous"),
    ) -> None:
        super().__init__()
        encoder_window, *windows = (neighbor_size if on else None for on in neighbor_mask)
        common = (hidden_dim, num_heads, feedforward_dim, dropout, grid_size)
        self.input_projection = nn.Linear(in_channels, hidden_dim)
        self.position = (LearnedPosition if position_embedding == "learned" else SinePosition)(grid_size, hidden_dim)
        self.encoder = NeighborMaskedEncoder(num_encoder_layers, *common, encoder_window)
        self.decoder = LayerwiseQueryDecoder(
            num_decoder_layers, *common, (windows[0], windows[1]), decoder_query, decoder_attention
        )
        self.output_projection = nn.Linear(hidden_dim, in_channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def inner_matrices(self) -> list[nn.Parameter]:
        """The weights of all linear maps inside the layers of encoder and decoder."""
        inside = [*self.encoder.layers.named_parameters(), *self.decoder.layers.named_parameters()]
        return [parameter for name, parameter in inside if parameter.dim() == 2 and name.endswith("weight")]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``tokens`` (B, N, C) -> their reconstruction (B, N, C)."""
        position = self.position()  # (N, D)
        memory = self.encoder(self.input_projection(tokens), position)  # (B, N, D)
        return self.output_projection(self.decoder(memory, position))


class UniADModel(nn.Module):
    """UniAD: frozen backbone, neck, normalisation, jitter, reconstruction, anomaly map and score.

    The arguments are those of ``anomalib_uniad.UniAD``, which documents them.

    Attributes:
        image_size (tuple[int, int]): Height ``H`` and width ``W`` of its input and its map: those of the argument, or
            what all tiles make together.
        grid_size (tuple[int, int]): Height and width of the token grid, of one tile.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_b4.aa_in1k",
        layers: Sequence[int] | Sequence[str] = (0, 1, 2, 3),
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        backbone_padding: BackbonePadding = "static",
        backbone_padding_mode: PaddingMode = "zeros",
        image_size: tuple[int, int] = (224, 224),
        feature_stride: int = 16,
        feature_resize: FeatureResize = "bilinear",
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 4,
        num_decoder_layers: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        position_embedding: PositionEmbedding = "learned",
        neighbor_size: tuple[int, int] = (7, 7),
        neighbor_mask: tuple[bool, bool, bool] = (True, True, True),
        reconstruction: Reconstruction = "uniad",
        decoder_query: DecoderQuery = "layerwise",
        decoder_attention: Sequence[AttentionTarget] = ("encoder", "previous"),
        feature_norm: FeatureNormMode = "none",
        layer_weights: Sequence[float] | None = None,
        jitter_scale: float = 20.0,
        jitter_probability: float = 1.0,
        image_score: ImageScore = "max",
        score_pool_size: int = 16,
        score_top_fraction: float = 0.02,
        tiles: tuple[int, int] = (1, 1),
        tile_overlap: float = 0.125,
        product_calibration: bool = False,
    ) -> None:
        super().__init__()
        image_size = (image_size[0], image_size[1])  # comparable with a shape, whatever sequence it was
        self.grid_size = _grid_size(image_size, feature_stride)
        if image_score == "max" and score_pool_size > min(image_size):
            raise InputError(f"score_pool_size ({score_pool_size}) must not exceed image_size {image_size}.")
        check_choice("feature_norm", feature_norm, get_args(FeatureNormMode))
        self.jitter = FeatureJitter(jitter_scale, jitter_probability)
        cut = Tiles(image_size, self.grid_size, (tiles[0], tiles[1]), tile_overlap)
        self.image_size = cut.image_size
        self.tiles = cut if max(tiles) > 1 else None
        self.anomaly_map = AnomalyMap(self.image_size, self.tiles)
        self.score = AnomalyScore(image_score, score_pool_size, score_top_fraction)
        self.products = Products() if product_calibration else None
        self.backbone = Backbone(
            backbone, layers, pre_trained, backbone_weights, backbone_padding, backbone_padding_mode
        )
        self.backbone.prepare(image_size)
        self.neck = MultiScaleNeck(self.grid_size, feature_resize)
        channels = sum(self.backbone.channels)
        weights = _of_channels(layer_weights, self.backbone.channels, feature_norm)
        self.feature_norm = FeatureNorm(channels, weights) if feature_norm == "standard" else None
        # Named after UniAD's own, as in checkpoints.
        self.transformer = _reconstruction(
            reconstruction,
            channels,
            self.grid_size,
            hidden_dim,
            num_heads,
            num_encoder_layers,
            num_decoder_layers,
            feedforward_dim,
            dropout,
            position_embedding,
            neighbor_size,
            neighbor_mask,
            decoder_query,
            decoder_attention,
        )

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (B, 3, H, W), normalised as the backbone expects -> ``features`` (B, C, h, w) of the neck.

        With tiles, those of all tiles side by side.
        """
        if tuple(images.shape[-2:]) != self.image_size:
            raise InputError(f"The model was built for images of {self.image_size}, got {tuple(images.shape[-2:])}.")
        grids = images if self.tiles is None else self.tiles.cut(images)
        few = max(1, _PIXELS_AT_ONCE // (grids.shape[2] * grids.shape[3]))
        if grids.device.type == "cpu" and not torch.compiler.is_compiling():
            found = torch.cat([self.neck(self.backbone(some)) for some in grids.split(few)])
        else:  # on other devices, and in exported files, which have no such loop
            found = self.neck(self.backbone(grids))
        return found if self.tiles is None else self.tiles.mosaic(found)

    def share_of_tokens(self, covered: torch.Tensor) -> torch.Tensor:
        """Part of the pixels of each token that are ``covered``: (B, 1, H, W) -> (B, 1, h, w), as features lie."""
        pixels = covered.float()
        if self.tiles is None:
            return F.adaptive_avg_pool2d(pixels, self.grid_size)
        return self.tiles.mosaic(F.adaptive_avg_pool2d(self.tiles.cut(pixels), self.grid_size))

    def normalise(self, features: torch.Tensor) -> torch.Tensor:
        """``features`` (B, C, h, w) of the neck -> what is reconstructed, (B, C, h, w)."""
        return features if self.feature_norm is None else self.feature_norm(features)

    def denormalise(self, features: torch.Tensor) -> torch.Tensor:
        """What is reconstructed, or a reconstruction (B, C, h, w) -> features as of the neck, (B, C, h, w)."""
        return features if self.feature_norm is None else self.feature_norm.inverse(features)

    def reconstruct(self, features: torch.Tensor) -> torch.Tensor:
        """Normalised ``features`` (B, C, h, w) -> their reconstruction (B, C, h, w)."""
        grids = features if self.tiles is None else self.tiles.apart(features)  # B is B * R * S with tiles
        tokens = self.jitter(grids.flatten(2).transpose(1, 2))  # (B, N, C)
        grids = self.transformer(tokens).transpose(1, 2).unflatten(2, self.grid_size)
        return grids if self.tiles is None else self.tiles.mosaic(grids)

    def predict(self, features: torch.Tensor, covered: torch.Tensor | None = None) -> InferenceBatch:
        """Predict from features.

        Args:
            features (torch.Tensor): ``(B, C, h, w)`` of the neck.
            covered (torch.Tensor | None): ``(B or 1, 1, H, W)``, false where images are padded, which counts neither
                in map nor score. Defaults to ``None``, no padding.

        Returns:
            InferenceBatch: ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``.
        """
        features = self.normalise(features)
        error = self.anomaly_map.error(self.reconstruct(features), features)  # (B, 1, h, w)
        anomaly_map = self.anomaly_map.from_error(error, covered)
        if torch.compiler.is_exporting() and covered is None and self.score.reduction == "max":
            # The same from tokens: OpenVINO takes longer for a pool of all pixels than for some layers of the backbone.
            score = self.anomaly_map.upsample(error, self.score.pool_size).amax(dim=(1, 2, 3))
        else:
            score = self.score(anomaly_map, covered)
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

    def look(self, images: torch.Tensor, covered: torch.Tensor | None = None) -> tuple[Any, Judged | None]:
        """Predict prepared images, and judge them by product.

        Args:
            images (torch.Tensor): ``(B, 3, H, W)``.
            covered (torch.Tensor | None): As of :meth:`predict`. Defaults to ``None``.

        Returns:
            tuple[InferenceBatch, Judged | None]: Raw scores and maps, and the same on the scale of all products;
            ``None`` without one.
        """
        features = self.extract(images)
        raw: Any = self.predict(features, covered)
        if self.products is None or not self.products.known:
            return raw, None
        return raw, self.products(self.normalise(features), raw.pred_score, raw.anomaly_map)

    def forward(
        self, images: torch.Tensor, covered: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor] | InferenceBatch:
        """Reconstruct the features of images.

        Args:
            images (torch.Tensor): ``(B, 3, H, W)``, normalised as the backbone expects.
            covered (torch.Tensor | None): As of :meth:`predict`. Defaults to ``None``.

        Returns:
            tuple[torch.Tensor, torch.Tensor] | InferenceBatch: In training, reconstruction and target, both
            ``(B, C, h, w)``; in evaluation, ``pred_score`` ``(B,)`` and ``anomaly_map`` ``(B, 1, H, W)``, on the scale
            of all products if there is one.
        """
        if not self.training:
            raw, judged = self.look(images, covered)
            return raw if judged is None else judged.outputs
        features = self.normalise(self.extract(images))
        return self.reconstruct(features), features


def _reconstruction(
    kind: Reconstruction,
    channels: int,
    grid_size: tuple[int, int],
    hidden_dim: int,
    num_heads: int,
    num_encoder_layers: int,
    num_decoder_layers: int,
    feedforward_dim: int,
    dropout: float,
    position_embedding: PositionEmbedding,
    neighbor_size: tuple[int, int],
    neighbor_mask: tuple[bool, bool, bool],
    decoder_query: DecoderQuery,
    decoder_attention: Sequence[AttentionTarget],
) -> ReconstructionTransformer | ReconstructionCNN | ReconstructionMLP:
    """What reconstructs the tokens; the arguments are those of :class:`ReconstructionTransformer`."""
    check_choice("reconstruction", kind, get_args(Reconstruction))
    # Also where they are of no use.
    check_choice("decoder_query", decoder_query, get_args(DecoderQuery))
    check_attention(decoder_attention)
    check_choice("position_embedding", position_embedding, get_args(PositionEmbedding))
    layers = {"num_encoder_layers": num_encoder_layers, "num_decoder_layers": num_decoder_layers}
    _check_sizes(hidden_dim=hidden_dim, num_heads=num_heads, **layers, feedforward_dim=feedforward_dim)
    check_fraction("dropout", dropout)
    if kind in {"uniad", "transformer"}:
        parts: tuple[Any, ...] = (neighbor_mask, decoder_query, decoder_attention)
        if kind == "transformer":
            parts = ((False, False, False), "first", ("encoder", "previous"))
        sizes = (hidden_dim, num_heads, num_encoder_layers, num_decoder_layers, feedforward_dim)
        return ReconstructionTransformer(
            channels, grid_size, *sizes, dropout, position_embedding, neighbor_size, *parts
        )
    num_layers = num_encoder_layers + num_decoder_layers
    # Attention has 4 D^2 weights, once in a layer of the encoder and twice in one of the decoder; here they are in the
    # feed-forward, which has 2 D of them for each of its inner channels.
    attentions = num_encoder_layers + 2 * num_decoder_layers
    width = feedforward_dim + 2 * hidden_dim * attentions // num_layers
    if kind == "mlp":
        return ReconstructionMLP(channels, hidden_dim, num_layers, width, dropout)
    width = max(1, round(width / 9))  # each convolution has nine matrices
    return ReconstructionCNN(channels, grid_size, hidden_dim, num_layers, width, dropout)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_at_least(name, size, 1)


def _of_channels(
    layer_weights: Sequence[float] | None, channels: Sequence[int], feature_norm: FeatureNormMode
) -> torch.Tensor | None:
    """A weight per layer -> one per channel (C,)."""
    if layer_weights is None:
        return None
    if feature_norm != "standard":
        raise InputError(f"layer_weights need feature_norm=standard, got feature_norm={feature_norm}.")
    if len(layer_weights) != len(channels) or not all(0 < weight < math.inf for weight in layer_weights):
        msg = f"layer_weights must be a positive number for each of the {len(channels)} layers, got {[*layer_weights]}."
        raise InputError(msg)
    return torch.tensor(layer_weights, dtype=torch.float32).repeat_interleave(torch.tensor(channels))


def _grid_size(image_size: tuple[int, int], feature_stride: int) -> tuple[int, int]:
    height, width = image_size
    if feature_stride < 1 or min(image_size) < 1 or height % feature_stride or width % feature_stride:
        raise InputError(
            f"image_size {image_size} must be a positive multiple of feature_stride ({feature_stride}) in both "
            "height and width."
        )
    return height // feature_stride, width // feature_stride
