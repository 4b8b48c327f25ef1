# SPDX-License-Identifier: Apache-2.0
"""A checkpoint and exported files, all run in the same way on images ``(H, W, 3)``, 0 to 255."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
import torch
from anomalib.data import ImageBatch

from anomalib_uniad.errors import InputError
from anomalib_uniad.inference.compiled import compile_file
from anomalib_uniad.inference.images import resize_image

Kind = Literal["raw", "normalised"]


@dataclass
class ImageResult:
    """Output of a model for one image.

    Attributes:
        scores (dict[Kind, float]): Score as trained, and as anomalib's post-processor normalises it.
        maps (dict[Kind, np.ndarray]): Anomaly map ``(H, W)``, likewise.
        anomalous (bool | None): The decision; ``None`` if there is no threshold.
    """

    scores: dict[Kind, float] = field(default_factory=dict)
    maps: dict[Kind, np.ndarray] = field(default_factory=dict)
    anomalous: bool | None = None


class TorchModel:
    """The torch model as it is exported: resize, normalisation, post-processor.

    Args:
        model (Any): Lightning module.
        file (Path): Its file.
    """

    precision, computed_in = "FP32", "f32"
    batch_size = 1
    kind: Kind = "raw"  # it has both

    def __init__(self, model: Any, file: Path) -> None:
        self.name, self.size_bytes = file.name, file.stat().st_size
        self._model = model.eval()

    def predict(self, image: np.ndarray) -> ImageResult:
        """Predict an image."""
        with torch.inference_mode():
            raw, judged = self._model.look(_tensor(image))
            normalised = self._model.finish(raw, judged)
        result = ImageResult()
        label = getattr(normalised, "pred_label", None)
        if label is not None and label.dtype == torch.bool:
            result.anomalous = bool(label)
        kinds: dict[Kind, Any] = {"raw": raw, "normalised": normalised}
        for kind, batch in kinds.items():
            result.scores[kind] = batch.pred_score.item()
            result.maps[kind] = batch.anomaly_map[0, 0].numpy()
        return result

    @torch.inference_mode()
    def infer(self, image: np.ndarray) -> Any:
        """Predict an image without fetching the result, for measuring."""
        return self._model(_tensor(image))


def _tensor(image: np.ndarray) -> torch.Tensor:
    """Pixels ``(H, W, 3)`` from 0 to 255 -> ``(1, 3, H, W)`` from 0 to 1."""
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


class ExportedModel:
    """An exported file in OpenVINO, run as `anomalib-uniad predict` runs it.

    The raw score and map are taken from inside the file, where its outputs are normalised and cut to [0, 1].

    Args:
        file (Path): ``model.xml`` with ``model.bin`` beside it, or an ONNX file.
        normalises (bool): Whether the model that was exported normalises its outputs.
        precision_hint (str): Precision of the computation; ``"auto"`` is the device's default. Defaults to ``"f32"``.

    Raises:
        ValueError: If the file is not an exported model with score and map.
    """

    def __init__(self, file: Path, normalises: bool, precision_hint: Literal["f32", "auto"] = "f32") -> None:
        self._file, self._precision_hint = file, precision_hint
        self._compiled = compiled = compile_file(file, precision_hint=precision_hint, performance_hint="LATENCY")
        if "anomaly_map" not in compiled.outputs:
            raise InputError(f"{file} has no output anomaly_map: export it with `anomalib export`.")
        self._decides = "pred_label" in compiled.outputs
        self.kind: Kind = "raw"
        self._outputs = compiled.raw_outputs
        if len(self._outputs) < 2:  # the outputs themselves, which are raw without post-processor
            self.kind = "normalised" if normalises and self._decides else "raw"
            self._outputs = compiled.outputs
        self._request = compiled.model.create_infer_request()
        self.name, self.size_bytes, self.batch_size = file.name, size_on_disk(file), compiled.batch_size
        self.image_size, self.value_range = compiled.metadata.image_size, compiled.metadata.value_range
        self.precision = compiled.metadata.precision or precision_of(ov.Core().read_model(file))
        self.computed_in = compiled.model.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def predict(self, image: np.ndarray) -> ImageResult:
        """Predict an image."""
        self.infer(image)
        score, anomaly_map = (self._output(self._outputs[name]) for name in ("pred_score", "anomaly_map"))
        label = bool(self._output(self._compiled.outputs["pred_label"]).reshape(-1)[0]) if self._decides else None
        values = anomaly_map[0].reshape(anomaly_map.shape[-2:]).copy()
        return ImageResult({self.kind: float(score.reshape(-1)[0])}, {self.kind: values}, label)

    def infer(self, image: np.ndarray) -> None:
        """Predict an image without fetching the result, for measuring."""
        self._request.infer({0: self.prepared(image)})

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """Return a batch of an image ``(H, W, 3)``, of the file's size if that is fixed."""
        size = self._compiled.size
        pixels = (resize_image(image, size) if size else image).astype(self._compiled.dtype, copy=False)
        return np.repeat(pixels[None], self.batch_size, axis=0)

    def queue(self) -> ov.AsyncInferQueue:
        """Return as many parallel requests as OpenVINO finds best."""
        return ov.AsyncInferQueue(compile_file(self._file, precision_hint=self._precision_hint).model)

    def _output(self, index: int) -> np.ndarray:
        return self._request.get_output_tensor(index).data


Model = TorchModel | ExportedModel


def pixels_of(batch: ImageBatch, rounded: bool) -> np.ndarray:
    """Pixels ``(H, W, 3)`` of a batch of one image ``(1, 3, H, W)`` in [0, 1]: uint8 if rounded, else float32."""
    images: Any = batch.image
    pixels = (images[0] * 255).permute(1, 2, 0)
    array: np.ndarray = (pixels.round().clip(0, 255).byte() if rounded else pixels).numpy()
    return array


def precision_of(model: ov.Model) -> str:
    """Find the precision of a file without metadata, in the words of the metadata: that of its largest constants.

    ``"INT8_PTQ"`` if activations are quantised too, with accuracy control or without.
    """
    sizes: dict[str, int] = {}
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            return "INT8_PTQ"
        if node.get_type_name() == "Constant":
            name = node.get_element_type().get_type_name()
            sizes[name] = sizes.get(name, 0) + int(np.prod(node.shape))
    largest = max(sizes, key=lambda name: sizes[name], default="f32")
    return {"f32": "FP32", "f16": "FP16", "u8": "INT8", "i8": "INT8"}.get(largest, largest)


def size_on_disk(file: Path) -> int:
    """Bytes of a file and of the weights beside it."""
    beside = {".xml": file.with_suffix(".bin"), ".onnx": file.with_name(f"{file.name}.data")}.get(file.suffix)
    return sum(path.stat().st_size for path in (file, beside) if path is not None and path.is_file())


def processor() -> str:
    """Name of the processor."""
    return str(ov.Core().get_property("CPU", "FULL_DEVICE_NAME")).strip()
