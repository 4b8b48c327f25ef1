# SPDX-License-Identifier: Apache-2.0
"""UniAD as an anomalib model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from anomalib import LearningType
from anomalib.data import Batch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRSchedulerConfig

from anomalib_uniad.metrics import PerCategoryEvaluator

from .anomaly_map import ImageScore
from .arguments import check_at_least, check_same_model, plain_layers, repeat
from .loss import ReconstructionLoss
from .torch_model import PositionEmbedding, UniADModel


class UniAD(AnomalibModule):
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
        lr_decay_epoch (int): The learning rate is multiplied by ``lr_decay_factor`` every so many epochs.
            Defaults to ``800``.
        lr_decay_factor (float): See ``lr_decay_epoch``. Defaults to ``0.1``.
        gradient_clip_norm (float): Gradients are scaled down to this total norm; 0 turns clipping off. Takes the
            place of the trainer's ``gradient_clip_val``. Defaults to ``0.1``.
        seed (int | None): Seed of the initial weights and, from the start of training, of everything random: order
            of the images, dropout, jitter. anomalib 2.7 accepts ``--seed_everything`` on its command line, but does
            nothing with it. ``None`` leaves the random state as it is. Defaults to ``None``.
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
        lr_decay_epoch: int = 800,
        lr_decay_factor: float = 0.1,
        gradient_clip_norm: float = 0.1,
        seed: int | None = None,
        pre_processor: PreProcessor | bool = True,
        post_processor: PostProcessor | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        # Plain tuples before the hyper-parameters are collected: configs bring lists of several classes.
        layers = plain_layers(layers)
        image_size = repeat("image_size", image_size, int, 2)
        neighbor_size = repeat("neighbor_size", neighbor_size, int, 2)
        neighbor_mask = repeat("neighbor_mask", neighbor_mask, bool, 3)
        check_at_least("learning_rate", learning_rate, 0)
        check_at_least("weight_decay", weight_decay, 0)
        check_at_least("lr_decay_epoch", lr_decay_epoch, 1)
        check_at_least("lr_decay_factor", lr_decay_factor, 0)
        check_at_least("gradient_clip_norm", gradient_clip_norm, 0)
        check_at_least("seed", 0 if seed is None else seed, 0)
        super().__init__(
            pre_processor=self.configure_pre_processor(image_size) if pre_processor is True else pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if self.input_size not in {None, image_size}:
            msg = f"The pre_processor resizes images to {self.input_size}, but image_size is {image_size}."
            raise ValueError(msg)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.lr_decay_epoch = lr_decay_epoch
        self.lr_decay_factor = lr_decay_factor
        self.gradient_clip_norm = gradient_clip_norm
        self.seed = seed
        self._validation_interval: int | None = None
        with torch.random.fork_rng(devices=[], enabled=seed is not None):  # the caller's random state stays
            if seed is not None:
                torch.manual_seed(seed)
            self.model = UniADModel(
                backbone=backbone,
                layers=layers,
                pre_trained=pre_trained,
                backbone_weights=backbone_weights,
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

    def setup(self, stage: str) -> None:
        """Seed the training, if a seed was given."""
        if stage == "fit" and self.seed is not None:
            seed_everything(self.seed, workers=True)

    def on_train_epoch_start(self) -> None:
        """Have the last epoch validated whatever the interval, for its thresholds and its checkpoint.

        Lightning writes checkpoints after validations, so without this the checkpoint of a training whose length is
        no multiple of the interval would be older than the model that is tested, or missing.
        """
        trainer = self.trainer
        if trainer.check_val_every_n_epoch is not None and self.current_epoch + 1 == trainer.max_epochs:
            self._validation_interval = trainer.check_val_every_n_epoch
            trainer.check_val_every_n_epoch = 1

    def on_fit_end(self) -> None:
        """Give the trainer its validation interval back."""
        if self._validation_interval is not None:
            self.trainer.check_val_every_n_epoch = self._validation_interval
            self._validation_interval = None

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
        reconstruction, target = self.model(batch.image)
        loss = self.loss(reconstruction, target)
        self.log(
            "train_loss",
            loss.detach(),
            on_epoch=True,
            on_step=False,
            prog_bar=True,
            batch_size=len(target),
        )
        return {"loss": loss}

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch; thresholds and metrics are computed from it by the callbacks."""
        del args, kwargs  # These variables are not used.
        return batch.update(**self.model(batch.image)._asdict())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a step schedule (UniAD, section 4.1); the frozen backbone is left out."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, self.lr_decay_epoch, self.lr_decay_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments that the trainer must have, whatever the user gives it."""
        return {"gradient_clip_val": self.gradient_clip_norm, "num_sanity_val_steps": 0}

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
