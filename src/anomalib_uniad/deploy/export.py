# SPDX-License-Identifier: Apache-2.0
"""What a model knows of its training, and writes into exported files."""

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from anomalib import TaskType
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.models.components import AnomalibModule
from anomalib.models.components.base.export_mixin.utils import get_dynamic_shapes_from_axes, get_example_input
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule
from torchmetrics import Metric

from anomalib_uniad.category import known_categories
from anomalib_uniad.inference.metadata import ModelMetadata

from .accuracy import OUTPUTS
from .pre_processor import ExactPreProcessor
from .quantization import check_quantization, compress_weights, quantize, quantize_with_accuracy_control

OPSET = 18  # what torch's exporter writes; for anomalib's default it would try to convert it, and fail


class SelfDescribing(LightningModule):
    """The part of a Lightning module that keeps a summary of its training, in checkpoints too, and exports it.

    ONNX files have it in their ``metadata_props``, from where OpenVINO takes it over; see
    :class:`anomalib_uniad.inference.metadata.ModelMetadata`.

    Attributes:
        training_summary (dict[str, Any]): ``dataset``, ``images``, ``categories``, ``epochs`` and ``seed`` of the
            training, as far as they are known; empty if there was none.
    """

    training_summary: dict[str, Any] = {}
    _loaded_thresholds: dict[str, Any] = {}

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        """The pre-processor of anomalib, exported with the resize of validation."""
        return ExactPreProcessor(AnomalibModule.configure_pre_processor(image_size).transform)

    def on_train_start(self) -> None:
        """Write down what is trained on."""
        super().on_train_start()
        datamodule = getattr(self.trainer, "datamodule", None)
        dataset: Any = getattr(self.trainer.train_dataloader, "dataset", None)
        self.training_summary = {
            "dataset": str(getattr(datamodule, "name", "")),
            "images": len(dataset) if hasattr(dataset, "__len__") else None,
            "categories": known_categories(datamodule),
            "epochs": self.trainer.current_epoch,
            "seed": getattr(self, "seed", None),
        }

    def on_train_epoch_start(self) -> None:
        """Count the epochs; at their start, as checkpoints are written before their end."""
        super().on_train_epoch_start()
        self.training_summary["epochs"] = self.trainer.current_epoch + 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the summary."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["training_summary"] = dict(self.training_summary)
        # The evaluator does so too, but is not asked for checkpoints of weights alone.
        checkpoint["category_thresholds"] = self.category_thresholds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the summary, and thresholds of categories: no callbacks are loaded before an export."""
        super().on_load_checkpoint(checkpoint)
        self.training_summary = dict(checkpoint.get("training_summary", {}))
        self._loaded_thresholds = checkpoint.get("category_thresholds", {})
        evaluator: Any = getattr(self, "evaluator", None)
        if hasattr(evaluator, "category_thresholds"):
            evaluator.category_thresholds = self._loaded_thresholds

    @property
    def category_thresholds(self) -> dict[str, Any]:
        """Thresholds of categories: of the evaluator, or from a checkpoint where it has none."""
        kept: dict[str, Any] = getattr(getattr(self, "evaluator", None), "category_thresholds", self._loaded_thresholds)
        return kept

    @property
    def metadata(self) -> ModelMetadata:
        """What an exported file says about the model."""
        post_processor: Any = getattr(self, "post_processor", None)
        learned: dict[str, float] = {}
        ranges: dict[str, float] = {}
        if getattr(post_processor, "enable_thresholding", False):
            learned = {level: float(getattr(post_processor, f"{level}_threshold")) for level in ("image", "pixel")}
        if getattr(post_processor, "enable_normalization", False):
            names = [f"{level}_{end}" for level in ("image", "pixel") for end in ("min", "max")]
            values = {name: float(getattr(post_processor, name)) for name in names}
            for level in ("image", "pixel"):  # both ends or none
                ends = {name: value for name, value in values.items() if name.startswith(level)}
                ranges |= ends if len(_finite(ends)) == 2 else {}
            for name in ("image_sensitivity", "pixel_sensitivity"):
                if ranges and getattr(post_processor, name) != 0.5:
                    ranges[name] = float(getattr(post_processor, name))
        of_categories = self.category_thresholds
        summary = {name: value for name, value in self.training_summary.items() if value not in (None, "", [])}
        categories = summary.pop("categories", [])
        return ModelMetadata(
            model=type(self).__name__,
            version=_version(),
            image_size=getattr(self, "input_size", None),
            categories=tuple(map(str, categories)),
            thresholds=_finite(learned),
            category_thresholds={
                str(name): kept for name, levels in of_categories.items() if (kept := _finite(levels))
            },
            normalization=ranges,
            training=summary,
        )

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
            precision (str): What the metadata say of it. Defaults to ``"FP32"``.
            **kwargs (Any): As of anomalib; ``opset_version`` is 18 if it is not given.

        Returns:
            Path: The file.
        """
        kwargs.setdefault("opset_version", OPSET)
        if input_size is None and _fixes_size(kwargs):
            input_size = self._resized_to  # anomalib would take 32 x 32 pixels, with which it probes models
        exporter: Any = super()
        path: Path = exporter.to_onnx(export_root, model_file_name, input_size, **kwargs)
        import onnx  # a package of the extra `openvino`

        model = onnx.load(path, load_external_data=False)  # weights in a file of their own stay there
        onnx.helper.set_model_props(model, replace(self.metadata, precision=precision).to_properties())
        onnx.save(model, path)
        return path

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
        if compression not in {None, CompressionType.FP16}:
            check_quantization(compression, getattr(self, "post_processor", None), datamodule, metric, max_drop)
        onnx_kwargs = {**(onnx_kwargs or {}), "precision": compression.name if compression else "FP32"}
        exporter: Any = super()
        return exporter.to_openvino(
            export_root,
            model_file_name,
            input_size,
            compression,
            datamodule,
            metric,
            task,
            max_drop,
            ov_kwargs,
            onnx_kwargs,
        )

    def _compress_ov_model(self, model: Any, compression_type: CompressionType | None = None, *args: Any) -> Any:
        if compression_type == CompressionType.INT8:
            return compress_weights(model)
        exporter: Any = super()
        return exporter._compress_ov_model(model, compression_type, *args)

    def _post_training_quantization_ov(self, model: Any, datamodule: AnomalibDataModule) -> Any:
        return quantize(model, datamodule, self._resized_to)

    def _accuracy_control_quantization_ov(
        self, model: Any, datamodule: AnomalibDataModule, metric: Metric | None, task: Any, max_drop: float
    ) -> Any:
        del task  # This variable is not used.
        return quantize_with_accuracy_control(model, datamodule, self._resized_to, metric, max_drop)

    @property
    def _resized_to(self) -> tuple[int, int]:
        height, width = self.model.image_size  # type: ignore[union-attr, misc]
        return int(height), int(width)


def _fixes_size(onnx_kwargs: Mapping[str, Any]) -> bool:
    """Whether the example image says what the height or the width of the input is, asked with one of a single pixel."""
    shapes = onnx_kwargs.get("dynamic_shapes")
    if "dynamic_shapes" not in onnx_kwargs:
        if "dynamic_axes" not in onnx_kwargs:
            return False  # by default, all sizes are free
        names = list(onnx_kwargs.get("input_names", ["input"]))
        shapes = get_dynamic_shapes_from_axes(onnx_kwargs["dynamic_axes"], names, list(OUTPUTS))
    return 1 in get_example_input((1, 1), shapes).shape[2:]  # at least two pixels where it is free


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _version() -> str | None:
    try:
        return version("anomalib-uniad")
    except PackageNotFoundError:  # the source tree, not installed
        return None
