# SPDX-License-Identifier: Apache-2.0
"""What a model knows of its training, and writes into exported files."""

import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule

from anomalib_uniad.data.category import known_categories
from anomalib_uniad.inference.metadata import ModelMetadata

from .pre_processor import ExactPreProcessor


class SelfDescribing(LightningModule):
    """The part of a Lightning module that keeps a summary of its training, in checkpoints too, and exports it.

    ONNX files have it in their ``metadata_props``, from where OpenVINO takes it over; see
    :class:`anomalib_uniad.inference.metadata.ModelMetadata`.

    Attributes:
        training_summary (dict[str, Any]): ``dataset``, ``images``, ``categories``, ``epochs`` and ``seed`` of the
            training, as far as they are known; empty if there was none.
    """

    training_summary: dict[str, Any] = {}

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the summary, and thresholds of categories: no callbacks are loaded before an export."""
        super().on_load_checkpoint(checkpoint)
        self.training_summary = dict(checkpoint.get("training_summary", {}))
        evaluator: Any = getattr(self, "evaluator", None)
        if hasattr(evaluator, "category_thresholds"):
            evaluator.category_thresholds = checkpoint.get("category_thresholds", {})

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
            ranges = _finite({name: float(getattr(post_processor, name)) for name in names})
            for name in ("image_sensitivity", "pixel_sensitivity"):
                if ranges and getattr(post_processor, name) != 0.5:
                    ranges[name] = float(getattr(post_processor, name))
        of_categories: dict[str, Any] = getattr(getattr(self, "evaluator", None), "category_thresholds", {})
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

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:  # type: ignore[override]  # anomalib's, not Lightning's
        """Export to ONNX as anomalib does, with the metadata in the file; OpenVINO files are made from it.

        Args:
            *args (Any): As of anomalib.
            **kwargs (Any): As of anomalib.

        Returns:
            Path: The file.
        """
        path: Path = super().to_onnx(*args, **kwargs)  # type: ignore[assignment]
        import onnx  # a package of the extra `openvino`

        model = onnx.load(path, load_external_data=False)  # weights in a file of their own stay there
        onnx.helper.set_model_props(model, self.metadata.to_properties())
        onnx.save(model, path)
        return path


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _version() -> str | None:
    try:
        return version("anomalib-uniad")
    except PackageNotFoundError:  # the source tree, not installed
        return None
