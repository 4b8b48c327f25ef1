# SPDX-License-Identifier: Apache-2.0
"""INT8: which part of an exported model is quantised, with which images, and how what is lost is measured."""

import math
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.metrics import F1Score
from anomalib.post_processing import PostProcessor
from lightning_utilities.core.imports import module_available
from torch.utils.data import DataLoader
from torchmetrics import Metric

from .accuracy import measure
from .quantization_images import batches_of, calibration_images, plain

if TYPE_CHECKING:
    import nncf
    import openvino

# Parts that stay in float32, and what else is done for accuracy.
PIXELS, DEPTHWISE = "float32 before the backbone", "float32 depthwise convolutions"
MAPS, ERROR = "float32 resize of maps", "float32 from the error on"
OVERFLOW, RANGES = "overflow fix", "largest ranges"
RECTANGLES, TRANSFORMER = "painted rectangles", "transformer type (SmoothQuant)"
CHOICES = (OVERFLOW, RANGES, RECTANGLES, TRANSFORMER, PIXELS, DEPTHWISE, MAPS, ERROR)


def check_quantization(
    compression: CompressionType,
    post_processor: Any,
    datamodule: AnomalibDataModule | None,
    metric: Any = None,
    max_drop: float = 0.01,
) -> None:
    """Refuse what could only fail at the end of an export, and set up the datamodule.

    Args:
        compression (CompressionType): ``INT8``, ``INT8_PTQ`` or ``INT8_ACQ``.
        post_processor (Any): Of the model.
        datamodule (AnomalibDataModule | None): Where images are from.
        metric (Any): What is measured with accuracy control. Defaults to ``None``.
        max_drop (float): By how much it may fall. Defaults to ``0.01``.

    Raises:
        FileNotFoundError: If the data set is not there.
        ModuleNotFoundError: If NNCF is not installed.
        TypeError: If the metric is none.
        ValueError: If there are no images, the model has not learned its thresholds, or ``max_drop`` is out of range.
    """
    if not module_available("nncf"):
        msg = 'INT8 needs NNCF: pip install "anomalib-uniad[openvino]".'
        raise ModuleNotFoundError(msg, name="nncf")
    if compression == CompressionType.INT8:
        return
    name = compression.name  # as on the command line
    if datamodule is None:
        msg = f"compression_type={name} measures activations on images: give a datamodule (--data on the command line)."
        raise ValueError(msg)
    names = ("image_min", "image_max", "pixel_min", "pixel_max") if _normalizes(post_processor) else ()
    if not all(math.isfinite(float(getattr(post_processor, name))) for name in names):
        msg = (
            f"compression_type={name} needs a model that has learned how to normalise its scores, which happens at a "
            "validation. This one has not: run engine.validate(model, datamodule) with the checkpoint, then "
            "engine.trainer.save_checkpoint(...), and export that; or export a model with post_processor=False."
        )
        raise ValueError(msg)
    if compression == CompressionType.INT8_ACQ:
        _check_accuracy_control(post_processor, metric, max_drop)
    _set_up(datamodule, name)
    if compression == CompressionType.INT8_ACQ and not len(getattr(datamodule, "val_data", [])):
        msg = f"Accuracy is measured on validation images, of which {datamodule.name} has none: set val_split_mode."
        raise ValueError(msg)


def _set_up(datamodule: AnomalibDataModule, name: str) -> None:
    try:
        datamodule.setup("fit")  # without prepare_data, which would download a public data set to a misspelt folder
    except FileNotFoundError as error:
        msg = f"compression_type={name} takes training images that are there, and downloads none: {error}"
        raise FileNotFoundError(msg) from error


def _check_accuracy_control(post_processor: Any, metric: Any, max_drop: float) -> None:
    if not 0 <= max_drop <= 1:
        msg = f"max_drop must lie in [0, 1], got {max_drop}."
        raise ValueError(msg)
    if metric is not None and not isinstance(metric, Metric):
        msg = (
            "metric must be a metric object, for example anomalib.metrics.AUROC(fields=['pred_score', 'gt_label']), "
            f"got {metric!r}. On the command line: --metric anomalib.metrics.AUROC "
            "--metric.fields '[pred_score, gt_label]'."
        )
        raise TypeError(msg)
    decides = getattr(post_processor, "enable_thresholding", False)
    if "pred_label" in getattr(metric, "fields", ["pred_label"]) and not decides:
        msg = (
            "The F1 score, which accuracy control measures by default, needs decisions, and this model's "
            "post_processor makes none. Give another metric, for example AUROC of pred_score."
        )
        raise ValueError(msg)


def compress(
    model: "openvino.Model",
    compression: CompressionType | None,
    datamodule: AnomalibDataModule | None,
    size: tuple[int, int],
    metric: Metric | None = None,
    max_drop: float = 0.01,
) -> "openvino.Model":
    """Compress a model whose arguments :func:`check_quantization` has taken.

    Args:
        model (openvino.Model): The exported model.
        compression (CompressionType): ``INT8``, ``INT8_PTQ`` or ``INT8_ACQ``.
        datamodule (AnomalibDataModule | None): Where images are from; not needed for ``INT8``.
        size (tuple[int, int]): Height and width to which the model resizes.
        metric (Metric | None): What is measured with ``INT8_ACQ``. Defaults to ``None``, the F1 score.
        max_drop (float): By how much it may fall. Defaults to ``0.01``.

    Returns:
        openvino.Model: The compressed model.
    """
    if compression == CompressionType.INT8:
        return compress_weights(model)
    if datamodule is None:
        msg = "Quantisation measures activations on images: give a datamodule."
        raise ValueError(msg)
    if compression == CompressionType.INT8_PTQ:
        return quantize(model, datamodule, size)
    return quantize_with_accuracy_control(model, datamodule, size, metric, max_drop)


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
    model: "openvino.Model", datamodule: AnomalibDataModule, size: tuple[int, int], without: Collection[str] = ()
) -> "openvino.Model":
    """Quantise a model with training images; no image that is tested is looked at.

    Args:
        model (openvino.Model): The exported model.
        datamodule (AnomalibDataModule): Where images are from.
        size (tuple[int, int]): Height and width to which the model resizes.
        without (Collection[str]): What of :data:`CHOICES` is left out, to see what it does. Defaults to ``()``.

    Returns:
        openvino.Model: The model in INT8.

    Raises:
        ValueError: If there is no such choice.
    """
    import nncf

    if unknown := sorted(set(without) - set(CHOICES)):
        msg = f"There is no choice {', '.join(unknown)}: without takes {', '.join(CHOICES)}."
        raise ValueError(msg)
    images = calibration_images(model, datamodule, size, painted=RECTANGLES not in without)
    options, advanced = _options(model, without)
    return nncf.quantize(model, _dataset(images), subset_size=len(images), advanced_parameters=advanced, **options)


def quantize_with_accuracy_control(
    model: "openvino.Model",
    datamodule: AnomalibDataModule,
    size: tuple[int, int],
    metric: Metric | None = None,
    max_drop: float = 0.01,
) -> "openvino.Model":
    """Quantise a model like :func:`quantize`, then take layers back to full precision until it is accurate enough.

    Args:
        model (openvino.Model): The exported model.
        datamodule (AnomalibDataModule): Where images are from; accuracy is measured on the validation images.
        size (tuple[int, int]): Height and width to which the model resizes.
        metric (Metric | None): What is measured, higher is better. Defaults to ``None``, anomalib's choice: the F1
            score of the decisions on images.
        max_drop (float): By how much it may fall, absolute. Defaults to ``0.01``.

    Returns:
        openvino.Model: The model in INT8.
    """
    import nncf

    calibration = calibration_images(model, datamodule, size)
    validation = batches_of(plain(datamodule.val_data), model, size)
    metric = metric or F1Score(fields=["pred_label", "gt_label"])
    validate = partial(measure, metric=metric, images=len(datamodule.val_data))
    options, advanced = _options(model)
    return nncf.quantize_with_accuracy_control(
        model,
        _dataset(calibration),
        _dataset(validation),
        validate,
        max_drop=max_drop,
        subset_size=len(calibration),
        advanced_quantization_parameters=advanced,
        **options,
    )


def sensitive_operations(model: "openvino.Model", without: Collection[str] = ()) -> list[str]:
    """Names of the operations that stay as they are, because they are sensitive and cost little time.

    These are what comes before the backbone, its depthwise convolutions, the resize of its maps, which are the target
    of the reconstruction, and everything from the reconstruction error on, a difference of similar features.

    Args:
        model (openvino.Model): The exported model.
        without (Collection[str]): Which of these parts are not kept as they are. Defaults to ``()``.
    """
    operations = model.get_ordered_ops()
    first = next(op for op in operations if op.get_type_name() == "Convolution")
    before = _reached([first.input_value(0).get_node()], lambda op: [port.get_node() for port in op.input_values()])
    norms = [op for op in operations if op.get_type_name() == "ReduceL2"]
    errors = [op.input_value(0).get_node() for op in norms]
    after = _reached(
        norms, lambda op: [target.get_node() for port in op.outputs() for target in port.get_target_inputs()]
    )
    kept = {PIXELS: before, ERROR: after | {op.get_friendly_name() for op in errors}}
    for part, kind in ((DEPTHWISE, "GroupConvolution"), (MAPS, "Interpolate")):
        kept[part] = set(_of_type(operations, kind))
    return sorted({name for part, names in kept.items() if part not in without for name in names})


def _of_type(operations: Iterable[Any], kind: str) -> list[str]:
    return [op.get_friendly_name() for op in operations if op.get_type_name() == kind]


def _reached(start: Sequence[Any], neighbors: Any) -> set[str]:
    """Names of operations, and of all that can be reached from them."""
    waiting, names = list(start), set()
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() not in names:
            names.add(op.get_friendly_name())
            waiting += neighbors(op)
    return names


def _options(model: "openvino.Model", without: Collection[str] = ()) -> tuple[dict[str, Any], Any]:
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


def _dataset(batches: DataLoader) -> "nncf.Dataset":
    import nncf

    return nncf.Dataset(batches, lambda images: images.input.numpy())


def _normalizes(post_processor: Any) -> bool:
    return isinstance(post_processor, PostProcessor) and post_processor.enable_normalization
