# SPDX-License-Identifier: Apache-2.0
"""A checkpoint and exported files, all asked in the same way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import openvino as ov
import torch
from anomalib.data import InferenceBatch
from torch.nn.functional import interpolate

from anomalib_uniad.inference.compiled import raw_values_of
from anomalib_uniad.inference.metadata import ModelMetadata

Kind = Literal["raw", "normalised"]


@dataclass
class Prediction:
    """What a model says about one image.

    Attributes:
        scores (dict[Kind, float]): Score as trained, and as anomalib's post-processor normalises it.
        maps (dict[Kind, np.ndarray]): Anomaly map ``(H, W)``, likewise.
        anomalous (bool | None): The decision; ``None`` if there is no threshold.
    """

    scores: dict[Kind, float] = field(default_factory=dict)
    maps: dict[Kind, np.ndarray] = field(default_factory=dict)
    anomalous: bool | None = None


class Predictor(Protocol):
    """Something that predicts images."""

    name: str
    precision: str
    computed_in: str
    size_bytes: int
    batch_size: int
    kind: Kind

    def predict(self, image: np.ndarray) -> Prediction:
        """``image`` (1, 3, H, W) in [0, 1], float32 -> what is said about it."""

    def infer(self, image: np.ndarray) -> None:
        """Do the same without a result, for measuring."""


class TorchPredictor:
    """The torch model, in the way it is exported: resize, normalisation, post-processor.

    Args:
        model (Any): Lightning module.
        file (Path): Where it is from.
        precision (str): What the weights are in. Defaults to ``"FP32"``.
    """

    computed_in = "f32"
    batch_size = 1
    kind: Kind = "raw"  # it has both

    def __init__(self, model: Any, file: Path, precision: str = "FP32") -> None:
        self._model, self._raw = model.eval(), InferenceBatch()
        model.model.register_forward_hook(self._keep)
        self.name, self.precision, self.size_bytes = file.name, precision, file.stat().st_size

    @torch.inference_mode()
    def predict(self, image: np.ndarray) -> Prediction:
        """See :class:`Predictor`."""
        processed, raw = self._model(torch.from_numpy(image)), self._raw
        prediction = Prediction()
        label = getattr(processed, "pred_label", None)
        if label is not None and label.dtype == torch.bool:
            prediction.anomalous = bool(label)
        both: Mapping[Kind, Any] = {"raw": raw, "normalised": processed}
        for kind, batch in both.items():
            prediction.scores[kind] = batch.pred_score.item()
            prediction.maps[kind] = batch.anomaly_map[0, 0].numpy()
        return prediction

    @torch.inference_mode()
    def infer(self, image: np.ndarray) -> None:
        """See :class:`Predictor`."""
        self._model(torch.from_numpy(image))

    def _keep(self, module: Any, inputs: Any, output: InferenceBatch) -> None:
        del module, inputs  # These variables are not used.
        self._raw = output  # before the post-processor


class OpenVINOPredictor:
    """An exported file in OpenVINO.

    The raw score and map are taken from inside the file, where its outputs are normalised and cut to [0, 1].

    Args:
        file (Path): ``model.xml`` with ``model.bin`` beside it, or an ONNX file.
        normalises (bool): Whether the model that was exported normalises its outputs.
        computed_in (str): Precision of the computation; empty is the device's default. Defaults to ``"f32"``.

    Raises:
        ValueError: If the file is not an exported model that says map and score.
    """

    def __init__(self, file: Path, normalises: bool, computed_in: str = "f32") -> None:
        self.name, self.size_bytes = file.name, size_on_disk(file)
        self._core, model = ov.Core(), read(file)
        outputs = {name: index for index, port in enumerate(model.outputs) for name in port.names}
        raw = {name: raw_values_of(model.output(name)) for name in ("pred_score", "anomaly_map")}
        if all(port is not None for port in raw.values()):
            outputs |= {f"raw_{name}": len(model.outputs) + index for index, name in enumerate(raw)}
            model.add_outputs(list(raw.values()))
        elif not normalises or "pred_label" not in outputs:
            outputs |= {f"raw_{name}": outputs[name] for name in raw}
        self.kind: Kind = "raw" if "raw_pred_score" in outputs else "normalised"
        self._outputs = outputs
        self._decides = "pred_label" in outputs
        shape = model.input().partial_shape
        self.batch_size = shape[0].get_length() if shape[0].is_static else 1
        model.reshape(ov.PartialShape([self.batch_size, *list(shape)[1:]]))
        self._size = None if shape[2].is_dynamic else (shape[2].get_length(), shape[3].get_length())
        metadata = ModelMetadata.read(model, file)
        self.image_size, self.precision = metadata.image_size, metadata.precision or precision_of(model)
        self._model = model
        self._config = {"INFERENCE_PRECISION_HINT": computed_in} if computed_in else {}
        self._compiled = self._compile("LATENCY")
        computed = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.computed_in = {"float": "f32"}.get(computed, computed)
        self._request = self._compiled.create_infer_request()

    def predict(self, image: np.ndarray) -> Prediction:
        """See :class:`Predictor`."""
        self.infer(image)
        values = {name: self._request.get_output_tensor(index).data for name, index in self._outputs.items()}
        prediction = Prediction(anomalous=bool(values["pred_label"].reshape(-1)[0]) if self._decides else None)
        prefix = "raw_" if self.kind == "raw" else ""
        prediction.scores[self.kind] = float(values[f"{prefix}pred_score"].reshape(-1)[0])
        prediction.maps[self.kind] = values[f"{prefix}anomaly_map"][0, 0].copy()
        return prediction

    def infer(self, image: np.ndarray) -> None:
        """See :class:`Predictor`."""
        self._request.infer({0: self.prepared(image)})

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """``image`` (1, 3, H, W) as the file takes it: of its size if that is fixed, as often as its batch is large."""
        if self._size is not None and image.shape[2:] != self._size:
            tensor = torch.from_numpy(image)  # the same resize as inside of the torch model
            image = interpolate(tensor, self._size, mode="bilinear", antialias=True).numpy()
        return image if self.batch_size == 1 else np.repeat(image, self.batch_size, axis=0)

    def queue(self) -> ov.AsyncInferQueue:
        """Requests for throughput, as many as OpenVINO says."""
        return ov.AsyncInferQueue(self._compile("THROUGHPUT"))

    def _compile(self, hint: str) -> ov.CompiledModel:
        return self._core.compile_model(self._model, "CPU", {"PERFORMANCE_HINT": hint, **self._config})


def read(file: Path) -> ov.Model:
    """Read an exported file.

    Raises:
        ValueError: If it is none that OpenVINO can read, or lacks map or score.
    """
    try:
        model = ov.Core().read_model(file)
    except RuntimeError as error:
        msg = f"{file} is not a model that OpenVINO can read."
        raise ValueError(msg) from error
    names = {name for port in model.outputs for name in port.names}
    lacking = [name for name in ("anomaly_map", "pred_score") if name not in names]
    if lacking:
        msg = f"{file} has no output {' and no '.join(lacking)}: export it with `anomalib export`."
        raise ValueError(msg)
    return model


def precision_of(model: ov.Model) -> str:
    """What a file without metadata is in, in their words.

    That of its largest constants, or ``"INT8_PTQ"`` if activations are quantised too, with accuracy control or without.

    Args:
        model (ov.Model): As read from the file.
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
