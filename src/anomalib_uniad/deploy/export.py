# SPDX-License-Identifier: Apache-2.0
"""Metadata and input size of exported ONNX files, and how all exported files are put in their place."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anomalib.models.components.base.export_mixin.utils import get_dynamic_shapes_from_axes, get_example_input
from anomalib.post_processing import PostProcessor
from torch import nn

from anomalib_uniad.errors import InputError
from anomalib_uniad.files import disk_error, full_disk_named, partial_folder, replacing, version_of
from anomalib_uniad.geometry import Geometry
from anomalib_uniad.inference.metadata import Level, ModelMetadata

OPSET = 18  # what torch's exporter writes; for anomalib's default it would try to convert it, and fail
# What OpenVINO and torch say where a file cannot be written to its end.
_WRITE_FAILED = ("iostream error", "inline_container", "PytorchStreamWriter")
OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")


class WithProduct(NamedTuple):
    """anomalib's outputs for B images, and what a model that recognises products knows besides.

    anomalib's inferencers and OpenVINO's Model API refuse files with outputs that they do not know. So the last four
    are inner tensors of the files, which keep their names.

    Attributes:
        pred_score (torch.Tensor): ``(B,)``.
        pred_label (torch.Tensor | None): ``(B,)``.
        anomaly_map (torch.Tensor): ``(B, 1, H, W)``.
        pred_mask (torch.Tensor | None): ``(B, 1, H, W)``.
        product (torch.Tensor): Number of the product ``(B,)``.
        unknown_product (torch.Tensor): Whether it is of none of the known ones ``(B,)``.
        uncalibrated_score (torch.Tensor): ``(B,)``.
        uncalibrated_map (torch.Tensor): ``(B, 1, H, W)``.
    """

    pred_score: torch.Tensor
    pred_label: torch.Tensor | None
    anomaly_map: torch.Tensor
    pred_mask: torch.Tensor | None
    product: torch.Tensor
    unknown_product: torch.Tensor
    uncalibrated_score: torch.Tensor
    uncalibrated_map: torch.Tensor


def metadata_of(
    model: str,
    image_size: tuple[int, int] | None,
    post_processor: nn.Module | None,
    category_thresholds: Mapping[str, Mapping[Level, float]],
    training_summary: Mapping[str, Any],
    value_range: tuple[float, float] | None = None,
    geometry: Geometry | None = None,
    products: Sequence[str] = (),
    typical_scores: Sequence[float] = (),
    good_scores: Mapping[str, Mapping[str, float]] | None = None,
    image_score: Mapping[str, Any] | None = None,
) -> ModelMetadata:
    """Collect the metadata of a model for its exported file, without values that are unknown or not learned yet.

    Args:
        model (str): Name of its class.
        image_size (tuple[int, int] | None): Height and width to which it resizes.
        post_processor (nn.Module | None): anomalib's, with the thresholds and ranges that it has learned.
        category_thresholds (Mapping[str, Mapping[str, float]]): Category -> ``"image"`` and ``"pixel"`` -> threshold.
        training_summary (Mapping[str, Any]): ``dataset``, ``images``, ``categories``, ``epochs``, ``seed``.
        value_range (tuple[float, float] | None): Pixel values that are black and white in images of more than 8 bits.
            Defaults to ``None``.
        geometry (Geometry | None): Crop and padding. Defaults to ``None``, neither.
        products (Sequence[str]): Names of the products that it recognises. Defaults to ``()``.
        typical_scores (Sequence[float]): Typical score of a good image of each. Defaults to ``()``.
        good_scores (Mapping[str, Mapping[str, float]] | None): What was measured of the scores of good images of each.
            Defaults to ``None``, nothing.
        image_score (Mapping[str, Any] | None): How a score follows from a map. Defaults to ``None``, not known.

    Returns:
        ModelMetadata: The metadata, without the precision.
    """
    thresholds: dict[str, float] = {}
    normalization: dict[str, float] = {}
    if isinstance(post_processor, PostProcessor):
        for level in ("image", "pixel"):
            if post_processor.enable_thresholding:
                thresholds[level] = float(getattr(post_processor, f"{level}_threshold"))
            ends = {f"{level}_{end}": float(getattr(post_processor, f"{level}_{end}")) for end in ("min", "max")}
            if post_processor.enable_normalization and len(_finite(ends)) == 2:
                normalization |= ends
        for name in ("image_sensitivity", "pixel_sensitivity"):
            if normalization and getattr(post_processor, name) != 0.5:
                normalization[name] = float(getattr(post_processor, name))
    of_categories = {str(category): _finite(levels) for category, levels in category_thresholds.items()}
    training = {name: value for name, value in training_summary.items() if value not in (None, "", [])}
    return ModelMetadata(
        model=model,
        version=version_of("anomalib-uniad"),
        image_size=image_size,
        resize_mode=None if geometry is None or geometry.resize_mode == "stretch" else geometry.resize_mode,
        crop=None if geometry is None else geometry.crop,
        categories=tuple(map(str, training.pop("categories", []))),
        thresholds=_finite(thresholds),
        category_thresholds={category: levels for category, levels in of_categories.items() if levels},
        normalization=normalization,
        training=training,
        value_range=value_range,
        products=tuple(products),
        typical_scores=_finite(dict(zip(products, typical_scores, strict=True))),
        good_scores={name: dict(measured) for name, measured in (good_scores or {}).items()},
        image_score=dict(image_score or {}),
    )


def export_whole(export_root: Path | str, export: Callable[[Path], Path]) -> Path:
    """Put the files of an export, such as model.xml and model.bin, in the place of older ones all at once.

    Args:
        export_root (Path | str): Folder of the export.
        export (Callable[[Path], Path]): Exports to the folder that it is given, and returns the file; other files
            beside it belong to it.

    Returns:
        Path: The file.

    Raises:
        OSError: If the disk is full; older files stay.

    Examples:
        >>> import tempfile
        >>> def export(folder):
        ...     _ = (folder / "model.txt").write_text("weights")
        ...     return folder / "model.txt"
        >>> export_whole(tempfile.mkdtemp(), export).read_text()
        'weights'
    """
    root = Path(export_root)
    root.mkdir(parents=True, exist_ok=True)
    with full_disk_named(root), partial_folder(root, "export") as folder:
        try:
            main = export(folder)
        except RuntimeError as error:
            if any(words in str(error) for words in _WRITE_FAILED):
                raise disk_error("the disk is full", root) from error
            raise
        if main.suffix == ".xml" and not _can_be_read(main):
            raise disk_error("the disk is full", root)
        written = sorted(main.parent.iterdir(), key=lambda path: path == main)
        targets = [root / path.relative_to(folder) for path in written]
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        with replacing(*targets) as parts:
            for path, part in zip(written, parts, strict=True):
                path.replace(part)
    return targets[-1]


def _can_be_read(file: Path) -> bool:
    """Whether a file is whole, of which OpenVINO itself may not have noticed that the disk was full."""
    import openvino

    try:
        openvino.Core().read_model(file)
    except RuntimeError:
        return False
    return True


def write_metadata(file: Path, metadata: ModelMetadata) -> None:
    """Write metadata into the ``metadata_props`` of an ONNX file, from where OpenVINO takes them over.

    Outputs that anomalib does not know become inner tensors.

    Args:
        file (Path): The file.
        metadata (ModelMetadata): The metadata.
    """
    import onnx  # a package of the extra `openvino`

    model = onnx.load(file, load_external_data=False)  # weights in a file of their own stay there
    onnx.helper.set_model_props(model, metadata.to_properties())
    for output in [output for output in model.graph.output if output.name not in OUTPUTS]:
        model.graph.output.remove(output)
        model.graph.value_info.append(output)
    onnx.save(model, file)


def check_weights(model: nn.Module) -> None:
    """Refuse weights with which no score would be a number.

    Args:
        model (nn.Module): The model that is exported.

    Raises:
        ValueError: If some are infinite or NaN.
    """
    wrong = [name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())]
    if wrong:
        names = ", ".join(wrong[:3]) + (" and others" if wrong[3:] else "")
        raise InputError(
            f"Weights of the model are not finite: {names}. Export an earlier checkpoint, or train again with a lower "
            "learning_rate."
        )


def fixes_size(onnx_kwargs: Mapping[str, Any]) -> bool:
    """Whether the height or the width of an ONNX file's input is fixed.

    Args:
        onnx_kwargs (Mapping[str, Any]): Arguments of anomalib's ``to_onnx``; both are free by default.

    Returns:
        bool: True if one of them follows from the size of the example image.
    """
    shapes = onnx_kwargs.get("dynamic_shapes")
    if "dynamic_shapes" not in onnx_kwargs:
        if "dynamic_axes" not in onnx_kwargs:
            return False
        names = list(onnx_kwargs.get("input_names", ["input"]))
        shapes = get_dynamic_shapes_from_axes(onnx_kwargs["dynamic_axes"], names, list(OUTPUTS))
    return 1 in get_example_input((1, 1), shapes).shape[2:]  # at least two pixels where it is free


def any_size() -> tuple[dict[int, Any]]:
    """The ``dynamic_shapes`` of anomalib's ``to_onnx`` for images of any number and size."""
    return ({0: torch.export.Dim("batch_size"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")},)


def _finite(values: Mapping[Any, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
