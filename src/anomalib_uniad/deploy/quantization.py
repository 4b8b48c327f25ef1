# SPDX-License-Identifier: Apache-2.0
"""FP16 and INT8: checks before the export, operations that are quantised, calibration images, accuracy control."""

import copy
import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from anomalib.data import AnomalibDataModule, AnomalibDataset, ImageBatch, ImageItem
from anomalib.deploy import CompressionType
from anomalib.metrics import F1Score
from anomalib.post_processing import PostProcessor
from lightning_utilities.core.imports import module_available
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import Metric
from torchvision.transforms.v2 import functional as transforms
from torchvision.tv_tensors import Mask

from anomalib_uniad.checks import check_fraction
from anomalib_uniad.errors import InputError, MissingFileError, MissingPackageError
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.transforms import CropAndPad

from .export import OUTPUTS

if TYPE_CHECKING:
    import nncf
    import openvino

logger = logging.getLogger(__name__)

CALIBRATION_IMAGES = 300
FEW = 1024  # numbers of a constant that stays in float32, as it takes no room: biases, thresholds, small divisors

# Parts that stay in float32, and what else is done for accuracy.
PIXELS, DEPTHWISE = "float32 before the backbone", "float32 depthwise convolutions"
MAPS, ERROR = "float32 resize of maps", "float32 from the error on"
PRODUCTS = "float32 recognition of products"
OVERFLOW, RANGES = "overflow fix", "largest ranges"
RECTANGLES, TRANSFORMER = "painted rectangles", "transformer type (SmoothQuant)"
CHOICES = (OVERFLOW, RANGES, RECTANGLES, TRANSFORMER, PIXELS, DEPTHWISE, MAPS, PRODUCTS, ERROR)


def check_quantization(
    compression: CompressionType,
    post_processor: nn.Module | None,
    datamodule: AnomalibDataModule | None,
    metric: Any = None,
    max_drop: float = 0.01,
) -> None:
    """Refuse before an export what would fail at its end, and set up the datamodule.

    Args:
        compression (CompressionType): ``INT8``, ``INT8_PTQ`` or ``INT8_ACQ``.
        post_processor (nn.Module | None): Of the model.
        datamodule (AnomalibDataModule | None): Where images are from.
        metric (Any): What ``INT8_ACQ`` measures. Defaults to ``None``, the F1 score of the decisions.
        max_drop (float): By how much the metric may fall. Defaults to ``0.01``.

    Raises:
        FileNotFoundError: If the data set is not there.
        ModuleNotFoundError: If NNCF is not installed.
        TypeError: If ``metric`` is not a metric.
        ValueError: If there are no images, the model has not learned its thresholds, or ``max_drop`` is out of range.
    """
    if not module_available("nncf"):
        msg = 'INT8 needs NNCF: pip install "anomalib-uniad[openvino]".'
        raise MissingPackageError(msg, name="nncf")
    if compression == CompressionType.INT8:
        return
    name = compression.name  # as on the command line
    if datamodule is None:
        msg = f"compression_type={name} measures activations on images: give a datamodule (--data on the command line)."
        raise InputError(msg)
    known = post_processor if isinstance(post_processor, PostProcessor) else None
    if known is not None and known.enable_normalization:
        ends = (known.image_min, known.image_max, known.pixel_min, known.pixel_max)
        if not all(math.isfinite(float(end)) for end in ends):
            raise InputError(
                f"compression_type={name} needs a model that has learned how to normalise its scores, which happens at "
                "a validation. This one has not: run engine.validate(model, datamodule) with the checkpoint, then "
                "engine.trainer.save_checkpoint(...), and export that; or export a model with post_processor=False."
            )
    if compression == CompressionType.INT8_ACQ:
        check_fraction("max_drop", max_drop)
        if metric is not None and not isinstance(metric, Metric):
            raise TypeError(
                "metric must be a metric object, for example anomalib.metrics.AUROC(fields=['pred_score', "
                f"'gt_label']), got {metric!r}. On the command line: --metric anomalib.metrics.AUROC "
                "--metric.fields '[pred_score, gt_label]'."
            )
        decides = known is not None and known.enable_thresholding
        if "pred_label" in getattr(metric, "fields", ["pred_label"]) and not decides:
            raise InputError(
                "The F1 score, which accuracy control measures by default, needs decisions, and this model's "
                "post_processor makes none. Give another metric, for example AUROC of pred_score."
            )
    try:
        datamodule.setup("fit")  # without prepare_data, which would download a public data set to a misspelt folder
    except FileNotFoundError as error:
        msg = f"compression_type={name} takes training images that are there, and downloads none: {error}"
        raise MissingFileError(msg) from error
    if compression == CompressionType.INT8_ACQ and not len(getattr(datamodule, "val_data", [])):
        msg = f"Accuracy is measured on validation images, of which {datamodule.name} has none: set val_split_mode."
        raise InputError(msg)


def halve_weights(model: "openvino.Model") -> "openvino.Model":
    """Store weights in float16.

    OpenVINO's own compression cuts values beyond 65,504, infinite ones and NaN to 65,504 without a word. Here, a
    constant that has finite ones among them stays in float32, with a warning, and so does each of few numbers.

    Args:
        model (openvino.Model): The exported model; changed in place.

    Returns:
        openvino.Model: The model, which computes in float32.
    """
    from openvino import Type
    from openvino import opset13 as ops

    kept = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != Type.f32 or node.data.size < FEW:
            continue
        values = node.data
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(np.isfinite(halves), np.isfinite(values)):
            kept.append(f"{node.get_friendly_name()} (up to {np.abs(values[np.isfinite(values)]).max():g})")
            continue
        converted = ops.convert(ops.constant(halves), "f32")
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(converted.output(0))
    if kept:
        logger.warning("Weights beyond 65,504 stay in float32, as float16 has no such numbers: %s", ", ".join(kept))
    return model


def compress_weights(model: "openvino.Model") -> "openvino.Model":
    """Store weights in INT8, except those of depthwise convolutions: few, and most of the accuracy is lost by them.

    Args:
        model (openvino.Model): The exported model.

    Returns:
        openvino.Model: The model, which computes in float32.
    """
    import nncf

    kept = nncf.IgnoredScope(names=_of_type(model.get_ops(), "GroupConvolution"), validate=False)
    compressed: openvino.Model = nncf.compress_weights(model, ignored_scope=kept)
    return compressed


def quantize(
    model: "openvino.Model", datamodule: AnomalibDataModule, size: tuple[int, int] | None, without: Collection[str] = ()
) -> "openvino.Model":
    """Quantise a model with training images; no image that is tested is looked at.

    Args:
        model (openvino.Model): The exported model.
        datamodule (AnomalibDataModule): Where images are from; it is set up.
        size (tuple[int, int] | None): Height and width to which the model resizes; ``None`` if it crops or pads.
        without (Collection[str]): Items of :data:`CHOICES` that are left out, to measure what they do.
            Defaults to ``()``.

    Returns:
        openvino.Model: The model in INT8.

    Raises:
        ValueError: If ``without`` has something else.
    """
    import nncf

    if unknown := sorted(set(without) - set(CHOICES)):
        raise InputError(f"There is no choice {', '.join(unknown)}: without takes {', '.join(CHOICES)}.")
    images = calibration_images(model, datamodule, size, painted=RECTANGLES not in without)
    options, advanced = _options(model, without)
    return nncf.quantize(model, _dataset(images), subset_size=len(images), advanced_parameters=advanced, **options)


def quantize_with_accuracy_control(
    model: "openvino.Model",
    datamodule: AnomalibDataModule,
    size: tuple[int, int] | None,
    metric: Metric | None = None,
    max_drop: float = 0.01,
    geometry: Geometry | None = None,
) -> "openvino.Model":
    """Quantise a model like :func:`quantize`, then take layers back to full precision until it is accurate enough.

    Args:
        model (openvino.Model): The exported model.
        datamodule (AnomalibDataModule): Where images are from; accuracy is measured on the validation images.
        size (tuple[int, int] | None): Height and width to which the model resizes; ``None`` if it crops or pads.
        metric (Metric | None): What is measured, higher is better. Defaults to ``None``, anomalib's choice: the F1
            score of the decisions on images.
        max_drop (float): By how much it may fall, absolute. Defaults to ``0.01``.
        geometry (Geometry | None): How images become the model's input. Defaults to ``None``, stretched.

    Returns:
        openvino.Model: The model in INT8.
    """
    import nncf

    calibration = calibration_images(model, datamodule, size)
    validation = batches_of(_without_augmentations(datamodule.val_data), model, size)
    metric = metric or F1Score(fields=["pred_label", "gt_label"])
    options, advanced = _options(model)
    return nncf.quantize_with_accuracy_control(
        model,
        _dataset(calibration),
        _dataset(validation),
        partial(measure, metric=metric, images=len(datamodule.val_data), geometry=geometry),
        max_drop=max_drop,
        subset_size=len(calibration),
        advanced_quantization_parameters=advanced,
        **options,
    )


def _options(model: "openvino.Model", without: Collection[str] = ()) -> tuple[dict[str, Any], Any]:
    """Arguments of both functions of NNCF, and its advanced parameters, for which each has another name."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    advanced = AdvancedQuantizationParameters()
    if OVERFLOW not in without:
        advanced.overflow_fix = OverflowFix.ENABLE  # processors without VNNI saturate, which costs most of the accuracy
    if RANGES not in without:
        advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX  # rare values are not cut off
    scope = nncf.IgnoredScope(names=sensitive_operations(model, without), validate=False)
    model_type = None if TRANSFORMER in without else nncf.ModelType.TRANSFORMER
    return {"model_type": model_type, "ignored_scope": scope}, advanced


def sensitive_operations(model: "openvino.Model", without: Collection[str] = ()) -> list[str]:
    """Names of the operations that stay in float32, because they are sensitive and cost little time.

    These are what comes before the backbone, its depthwise convolutions, the resize of its maps, which are the target
    of the reconstruction, the recognition of products, and everything from the reconstruction error on, a difference of
    similar features.

    Args:
        model (openvino.Model): The exported model.
        without (Collection[str]): Which of these parts are quantised nevertheless. Defaults to ``()``.

    Returns:
        list[str]: The names, sorted.
    """
    operations = model.get_ordered_ops()
    first = next(op for op in operations if op.get_type_name() == "Convolution")
    norms = [op for op in operations if op.get_type_name() == "ReduceL2"]
    errors = {op.input_value(0).get_node().get_friendly_name() for op in norms}
    kept = {
        PIXELS: _reachable([first.input_value(0).get_node()], _inputs),
        DEPTHWISE: _of_type(operations, "GroupConvolution"),
        MAPS: _of_type(operations, "Interpolate"),
        PRODUCTS: _reachable(
            [op for op in operations for port in op.outputs() if "product" in port.names], _until_mean
        ),
        ERROR: errors | _reachable(norms, _consumers),
    }
    return sorted({name for part, names in kept.items() if part not in without for name in names})


def _of_type(operations: Iterable[Any], kind: str) -> list[str]:
    return [op.get_friendly_name() for op in operations if op.get_type_name() == kind]


def _inputs(op: Any) -> list[Any]:
    return [port.get_node() for port in op.input_values()]


def _until_mean(op: Any) -> list[Any]:
    """Inputs, back to the mean of each channel by which products are recognised."""
    return [] if op.get_type_name() == "ReduceMean" else _inputs(op)


def _consumers(op: Any) -> list[Any]:
    return [target.get_node() for port in op.outputs() for target in port.get_target_inputs()]


def _reachable(start: Sequence[Any], neighbors: Callable[[Any], list[Any]]) -> set[str]:
    """Names of operations, and of all that can be reached from them."""
    waiting, names = list(start), set()
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() not in names:
            names.add(op.get_friendly_name())
            waiting += neighbors(op)
    return names


class Images(NamedTuple):
    """Batch of images for an exported model.

    Attributes:
        input (torch.Tensor): ``(B, 3, H, W)``; where a fixed batch is not full, the last image is repeated.
        items (list[ImageItem]): At most ``B`` items, with labels and masks.
    """

    input: torch.Tensor
    items: list[ImageItem]


class PaintedImages(Dataset[ImageItem]):
    """Normal images, and on every second one a rectangle, black or white.

    Without it, INT8 would only reach up to what is seen in normal images, and cut off defects, which differ more.

    Args:
        images (Any): Dataset of normal images.
    """

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ImageItem:
        item = self.images[index]
        if index % 2:
            item = copy.copy(item)
            height, width = item.image.shape[-2:]
            item.image = item.image.clone()
            item.image[:, height // 4 : height // 2, width // 4 : width // 2] = float(index % 4 == 1)
        return item


def calibration_images(
    model: "openvino.Model", datamodule: AnomalibDataModule, size: tuple[int, int] | None, painted: bool = True
) -> DataLoader:
    """Training images that activations are measured on, spread evenly over the dataset and so over its categories.

    Args:
        model (openvino.Model): The exported model.
        datamodule (AnomalibDataModule): Where they are from; it is set up.
        size (tuple[int, int] | None): Height and width to which the model resizes; ``None`` if it crops or pads.
        painted (bool): Paint rectangles, see :class:`PaintedImages`. Defaults to ``True``.

    Returns:
        DataLoader: Of :class:`Images`.
    """
    dataset = datamodule.train_data
    count = min(CALIBRATION_IMAGES, len(dataset))
    logger.info("Activations are measured on %d of %d training images", count, len(dataset))
    chosen = torch.linspace(0, len(dataset) - 1, count).round().int().tolist()
    images = Subset(_without_augmentations(dataset), chosen)
    return batches_of(PaintedImages(images) if painted else images, model, size)


def _without_augmentations(dataset: AnomalibDataset) -> AnomalibDataset:
    """A copy of the dataset without augmentations."""
    plain = copy.copy(dataset)
    plain.augmentations = None
    return plain


def batches_of(dataset: Any, model: "openvino.Model", size: tuple[int, int] | None) -> DataLoader:
    """Images one by one in their own size, or as many and as large as the model's input is, if it is fixed.

    Args:
        dataset (Any): Images.
        model (openvino.Model): The exported model.
        size (tuple[int, int] | None): Height and width to which the model resizes; ``None`` if it crops or pads.

    Returns:
        DataLoader: Of :class:`Images`.
    """
    shape = model.input().partial_shape
    batch = shape[0].get_length() if shape[0].is_static else 1
    input_size: list[int] | None = list(size) if batch > 1 and size is not None else None
    if shape[2].is_static and shape[3].is_static:
        input_size = [shape[2].get_length(), shape[3].get_length()]

    def collate(items: list[ImageItem]) -> Images:
        images: list[Any] = [item.image for item in items]
        together = input_size or list(images[0].shape[-2:])  # of the first one if the model does not stretch
        images = [transforms.resize(image, together) for image in images]
        return Images(torch.stack(images + images[-1:] * (batch - len(images))), items)

    return DataLoader(dataset, batch_size=batch, collate_fn=collate)


def _dataset(batches: DataLoader) -> "nncf.Dataset":
    import nncf

    return nncf.Dataset(batches, lambda images: images.input.numpy())


def measure(
    model: Any, batches: Iterable[Images], metric: Metric, images: int, geometry: Geometry | None = None
) -> tuple[float, list[float]]:
    """Measure a model for NNCF, which compares scores of batches to find out what layers change.

    Args:
        model (Any): Compiled model.
        batches (Iterable[Images]): Images with labels and masks.
        metric (Metric): What is measured.
        images (int): Number of all validation images.
        geometry (Geometry | None): How images become the model's input. Defaults to ``None``, stretched.

    Returns:
        tuple[float, list[float]]: The metric and the mean score of each batch. Of one batch out of several, about which
        metrics say little, the score in the place of the metric.
    """
    scores: list[float] = []
    seen = 0
    metric.reset()
    for batch in batches:
        outputs, count = model(batch.input.numpy()), len(batch.items)
        found: dict[str, Any] = {name: torch.tensor(outputs[name])[:count] for name in OUTPUTS if name in outputs}
        masks = [item.gt_mask for item in batch.items]
        if "anomaly_map" in found and all(mask is not None for mask in masks):
            height, width = found["anomaly_map"].shape[-2:]
            resize = CropAndPad(geometry or Geometry((height, width)))
            found["gt_mask"] = torch.cat([resize(Mask(mask)).reshape(1, height, width) for mask in masks])
        labels = torch.tensor([bool(item.gt_label) for item in batch.items])
        metric.update(ImageBatch(image=batch.input[:count], gt_label=labels, **found))
        scores.append(float(found["pred_score"].mean()))
        seen += count
    if len(scores) == 1 and seen < images:
        return scores[0], scores
    return float(metric.compute()), scores
