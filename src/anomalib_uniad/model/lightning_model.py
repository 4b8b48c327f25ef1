# SPDX-License-Identifier: Apache-2.0
"""UniAD as an anomalib model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from anomalib_uniad.deploy.export import SelfDescribing
from anomalib_uniad.metrics import PerCategoryEvaluator

from .anomaly_map import ImageScore
from .arguments import check_same_model, plain_layers, repeat
from .components.padding import BackbonePadding, PaddingMode
from .loss import ReconstructionLoss
from .official import FromOfficial
from .recipe import CheckpointChoice, CompileMode, FeatureCacheMode, FeatureDtype, LearningRateSchedule, Recipe
from .torch_model import PositionEmbedding, UniADModel


class UniAD(Recipe, FromOfficial, SelfDescribing, AnomalibModule):  # type: ignore[misc]  # static methods overridden
    """UniAD, one model for many product categories (https://arxiv.org/abs/2206.03687).

    The defaults are the paper's recipe for MVTec-AD; with 1,000 epochs, batches of 8 and a validation every 10
    epochs (arguments of the trainer and of the datamodule) they are the whole of it.

    Args:
        backbone (str): Frozen feature extractor: any timm model that has ``features_only``, or this package's
            own ``resnet10_synthetic``, which needs no download. Defaults to ``"tf_efficientnet_b4.aa_in1k"``.
        layers (Sequence[int] | Sequence[str]): Maps of the backbone that are reconstructed together, shallow to
            deep, as timm's ``out_indices`` or as names of modules; for EfficientNet, the default means the strides
            2, 4, 8 and 16. Defaults to ``(0, 1, 2, 3)``.
        pre_trained (bool): Load timm's pretrained weights for the backbone, from the hub or its local cache.
            Defaults to ``True``.
        backbone_weights (str | Path | None): Local weights file for the backbone (safetensors or torch, timm's
            parameter names), instead of ``pre_trained``. Defaults to ``None``.
        backbone_padding (str): How much layers with TensorFlow's SAME padding pad, which timm's ``tf_`` models have:
            ``"static"`` by the amounts of the resolution that the backbone was made for, as in the authors' code, or
            ``"timm"`` by those of the image size. Other layers always pad by their own amounts.
            Defaults to ``"static"``.
        backbone_padding_mode (str): What the backbone's convolutions pad with: ``"zeros"``, or ``"reflect"``, the
            mirrored map, against false positives at the border. Defaults to ``"zeros"``.
        image_size (int | Sequence[int]): Height and width to which images are resized, in pixels; a multiple
            of ``feature_stride``. Defaults to ``224``.
        feature_stride (int): Pixels per token; the token grid is ``image_size / feature_stride``.
            Defaults to ``16``.
        hidden_dim (int): Channels inside the transformer. Defaults to ``256``.
        num_heads (int): Attention heads; must divide ``hidden_dim``. Defaults to ``8``.
        num_encoder_layers (int): Layers of the encoder. Defaults to ``4``.
        num_decoder_layers (int): Layers of the decoder, each with its own query. Defaults to ``4``.
        feedforward_dim (int): Channels inside the feed-forward parts. Defaults to ``1024``.
        dropout (float): Dropout on attention weights, activations and residual branches. Defaults to ``0.1``.
        position_embedding (str): ``"learned"`` or ``"sine"``. Defaults to ``"learned"``.
        neighbor_size (int | Sequence[int]): Height and width of the window that the neighbor mask hides around
            each token, in tokens. Defaults to ``7``.
        neighbor_mask (bool | Sequence[bool]): Where neighbors are hidden, one value for all or three: encoder,
            decoder's attention to the encoder, decoder's attention to the previous layer. Defaults to ``True``.
        jitter_scale (float): Strength of the noise on the tokens during training. Defaults to ``20.0``.
        jitter_probability (float): Probability that a training batch is jittered. Defaults to ``1.0``.
        image_score (str): Score of an image: ``"max"``, ``"mean"`` or ``"std"`` of its anomaly map.
            Defaults to ``"max"``.
        score_pool_size (int): Side of the average pool before ``"max"``, in pixels. Defaults to ``16``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``1e-4``.
        weight_decay (float): Weight decay of AdamW. Defaults to ``1e-4``.
        lr_schedule (str): ``"step"``, as in the paper, or ``"cosine"``, which falls to zero at the last epoch.
            Defaults to ``"step"``.
        lr_warmup_epochs (float): The learning rate grows linearly over so many epochs. Defaults to ``0.0``.
        lr_decay_epoch (int): With ``"step"``, the learning rate is multiplied by ``lr_decay_factor`` every so many
            epochs. Defaults to ``800``.
        lr_decay_factor (float): See ``lr_decay_epoch``. Defaults to ``0.1``.
        gradient_clip_norm (float): Gradients are scaled down to this total norm; 0 turns clipping off. Takes the
            place of the trainer's ``gradient_clip_val``. Defaults to ``0.1``.
        seed (int | None): Seed of the initial weights and, from the start of training, of everything random: order
            of the images, dropout, jitter. anomalib 2.7 accepts ``--seed_everything`` on its command line, but does
            nothing with it. ``None`` draws one when training starts. Defaults to ``None``.
        feature_cache (str): Compute the backbone's features once instead of in every epoch: ``"memory"`` keeps them
            for this training, ``"disk"`` in files that later trainings on the same images find again; ``"off"`` reads
            and embeds images each time they are used. The first two need images without random augmentation.
            Defaults to ``"off"``.
        feature_cache_dtype (str): ``"float32"``, or ``"float16"`` for half the space. Defaults to ``"float32"``.
        feature_cache_dir (str | Path | None): Folder for ``"disk"``; ``None`` is ``anomalib-uniad/features`` in the
            user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``). Defaults to ``None``.
        compile_mode (str | None): Compile the training step with ``torch.compile`` in this mode (``"default"``,
            ``"reduce-overhead"`` for CUDA graphs, ``"max-autotune"``). Defaults to ``None``, not compiled.
        resume_interval (float): Minutes between checkpoints ``resume.ckpt``, from which an interrupted training
            goes on to the same weights; 0 writes none. Defaults to ``10.0``.
        checkpoint_selection (str): Which epoch is tested and kept in ``model.ckpt``: ``"last"``, or ``"best"``, the one
            with the highest validation ``image_AUROC``, which needs validation images that are not tested.
            Defaults to ``"last"``.
        pre_processor (PreProcessor | bool): ``True`` resizes to ``image_size`` and applies ImageNet mean and standard
            deviation. Defaults to ``True``.
        post_processor (PostProcessor | bool): ``True`` is anomalib's: normalised scores and thresholds, both learned
            at validation. Defaults to ``True``.
        evaluator (Evaluator | bool): ``True`` is ``anomalib_uniad.PerCategoryEvaluator``. Defaults to ``True``.
        visualizer (Visualizer | bool): ``True`` is anomalib's: one heatmap file per image. Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of its range or does not fit the others; the message names it.
        FileNotFoundError: If ``backbone_weights`` is not there.
        ConnectionError: If pretrained weights are wanted and the model hub cannot be reached.

    Example:
        >>> from anomalib_uniad import UniAD
        >>> model = UniAD(backbone="resnet18", pre_trained=False, image_size=128, neighbor_size=3)
        >>> model.model.grid_size
        (8, 8)
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_b4.aa_in1k",
        layers: Sequence[int] | Sequence[str] = (0, 1, 2, 3),
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        backbone_padding: BackbonePadding = "static",
        backbone_padding_mode: PaddingMode = "zeros",
        image_size: int | Sequence[int] = 224,
        feature_stride: int = 16,
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 4,
        num_decoder_layers: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        position_embedding: PositionEmbedding = "learned",
        neighbor_size: int | Sequence[int] = 7,
        neighbor_mask: bool | Sequence[bool] = True,
        jitter_scale: float = 20.0,
        jitter_probability: float = 1.0,
        image_score: ImageScore = "max",
        score_pool_size: int = 16,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        lr_schedule: LearningRateSchedule = "step",
        lr_warmup_epochs: float = 0.0,
        lr_decay_epoch: int = 800,
        lr_decay_factor: float = 0.1,
        gradient_clip_norm: float = 0.1,
        seed: int | None = None,
        feature_cache: FeatureCacheMode | Literal[False] = "off",
        feature_cache_dtype: FeatureDtype = "float32",
        feature_cache_dir: str | Path | None = None,
        compile_mode: CompileMode | None = None,
        resume_interval: float = 10.0,
        checkpoint_selection: CheckpointChoice = "last",
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        if feature_cache is False:
            feature_cache = "off"  # of which yaml without quotes makes False
        # Plain tuples before the hyper-parameters are collected: configs bring lists of several classes.
        layers = plain_layers(layers)
        image_size = repeat("image_size", image_size, int, 2)
        neighbor_size = repeat("neighbor_size", neighbor_size, int, 2)
        neighbor_mask = repeat("neighbor_mask", neighbor_mask, bool, 3)
        super().__init__(
            pre_processor=self.configure_pre_processor(image_size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if self.input_size not in {None, image_size}:
            msg = f"The pre_processor resizes images to {self.input_size}, but image_size is {image_size}."
            raise ValueError(msg)
        self.set_recipe(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            lr_schedule=lr_schedule,
            lr_warmup_epochs=lr_warmup_epochs,
            lr_decay_epoch=lr_decay_epoch,
            lr_decay_factor=lr_decay_factor,
            gradient_clip_norm=gradient_clip_norm,
            seed=seed,
            feature_cache=feature_cache,
            feature_cache_dtype=feature_cache_dtype,
            feature_cache_dir=feature_cache_dir,
            compile_mode=compile_mode,
            resume_interval=resume_interval,
            checkpoint_selection=checkpoint_selection,
        )
        with torch.random.fork_rng(devices=[], enabled=seed is not None):  # the caller's random state stays
            if seed is not None:
                torch.manual_seed(seed)
            self.model: UniADModel = UniADModel(
                backbone=backbone,
                layers=layers,
                pre_trained=pre_trained,
                backbone_weights=backbone_weights,
                backbone_padding=backbone_padding,
                backbone_padding_mode=backbone_padding_mode,
                image_size=image_size,
                feature_stride=feature_stride,
                hidden_dim=hidden_dim,
                num_heads=num_heads,
                num_encoder_layers=num_encoder_layers,
                num_decoder_layers=num_decoder_layers,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
                position_embedding=position_embedding,
                neighbor_size=neighbor_size,
                neighbor_mask=neighbor_mask,
                jitter_scale=jitter_scale,
                jitter_probability=jitter_probability,
                image_score=image_score,
                score_pool_size=score_pool_size,
            )
        self.loss = ReconstructionLoss()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of a model that was built differently.

        Raises:
            ValueError: If arguments differ that the weights do not show; the message lists them.
        """
        super().on_load_checkpoint(checkpoint)
        check_same_model(checkpoint.get("hyper_parameters", {}), self.hparams)

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Reconstruct the features of a batch of normal images."""
        del args, kwargs  # These variables are not used.
        target = self._features(batch)  # (B, C, h, w)
        loss = self.loss(self.reconstruct(target), target)
        self.log("train_loss", loss.detach(), on_epoch=True, on_step=False, prog_bar=True, batch_size=len(target))
        return {"loss": loss}

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch; thresholds and metrics are computed from it by the callbacks."""
        del args, kwargs  # These variables are not used.
        with torch.autocast(self.device.type, enabled=False):
            return batch.update(**self.model.predict(self._features(batch))._asdict())

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, in full precision like validation and exported models."""
        with torch.autocast(self.device.type, enabled=False):
            return super().test_step(batch, *args, **kwargs)

    def predict_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, in full precision like validation, from which the thresholds are."""
        with torch.autocast(self.device.type, enabled=False):
            return super().predict_step(batch, *args, **kwargs)

    def _features(self, batch: Batch) -> torch.Tensor:
        """Features (B, C, h, w) of a batch: from the cache, or computed; in full precision, as is their target."""
        cached = getattr(batch, "features", None)
        with torch.autocast(self.device.type, enabled=False):
            return self.model.extract(cast("torch.Tensor", batch.image)) if cached is None else cached.to(self.dtype)

    @property
    def learning_type(self) -> LearningType:
        """UniAD learns from normal images only."""
        return LearningType.ONE_CLASS

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Metrics per category and their mean."""
        return PerCategoryEvaluator()

    @classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> "UniAD":
        """Load a Lightning checkpoint; it brings the backbone's weights, so nothing else is read or fetched."""
        kwargs = {"pre_trained": False, "backbone_weights": None, **kwargs}
        return cast("UniAD", super().load_from_checkpoint(*args, **kwargs))
