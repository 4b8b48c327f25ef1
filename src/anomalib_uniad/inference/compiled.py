# SPDX-License-Identifier: Apache-2.0
"""Reading an exported file and compiling it for throughput."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openvino as ov
from openvino.preprocess import PrePostProcessor, ResizeAlgorithm

from .metadata import ModelMetadata

PrecisionHint = Literal["f32", "bf16", "auto"]

_VIRTUAL_DEVICES = {"AUTO", "BATCH", "HETERO", "MULTI"}


@dataclass(frozen=True)
class Compiled:
    """A model that takes images as they are read: ``(B, H, W, 3)``, uint8, of any size.

    Args:
        model (ov.CompiledModel): The model.
        batch_size (int): Images per request.
        outputs (dict[str, int]): Position of each output by name: ``pred_score``, ``anomaly_map`` and what else it has.
        raw_outputs (dict[str, int]): Position of the raw values of an output that is cut to [0, 1], by its name.
        metadata (ModelMetadata): What the file says about itself.
    """

    model: ov.CompiledModel
    batch_size: int
    outputs: dict[str, int]
    raw_outputs: dict[str, int]
    metadata: ModelMetadata


def compile_file(file: Path, device: str = "CPU", precision_hint: PrecisionHint = "f32", threads: int = 0) -> Compiled:
    """Read a model that anomalib has exported, and compile it.

    Args:
        file (Path): ``model.xml`` with ``model.bin`` beside it, or an ONNX file.
        device (str): OpenVINO's name of the device. Defaults to ``"CPU"``.
        precision_hint (str): Precision of the computation. Defaults to ``"f32"``.
        threads (int): Threads on the CPU; 0 leaves it to OpenVINO. Defaults to ``0``.

    Raises:
        FileNotFoundError: If the file or the weights beside it are not there.
        ValueError: If it is no such model, its metadata is malformed, or the device or the number is unknown.
    """
    if threads < 0:
        msg = f"threads must be positive, or 0 for OpenVINO's choice, got {threads}."
        raise ValueError(msg)
    file = _check_files(file)
    core = ov.Core()
    available = core.available_devices
    known = {*_VIRTUAL_DEVICES, *available, *(name.split(".")[0] for name in available)}  # GPU.1 is one of GPU
    if device not in known and device.split(":")[0] not in _VIRTUAL_DEVICES:
        msg = f"There is no device {device!r}; this machine has {', '.join(available)}, and there is AUTO."
        raise ValueError(msg)
    try:
        model = core.read_model(file)
    except RuntimeError as error:
        msg = f"{file} is not a model that OpenVINO can read: {_last_line(error)}"
        raise ValueError(msg) from error
    metadata = ModelMetadata.read(model, file)
    outputs = {name: index for index, output in enumerate(model.outputs) for name in output.names}
    _check_ports(file, model, outputs)
    raw = {name: raw_values_of(model.output(name)) for name in ("pred_score", "anomaly_map") if name in outputs}
    cut = {name: port for name, port in raw.items() if port is not None}
    raw_outputs = {name: len(model.outputs) + index for index, name in enumerate(cut)}
    if cut:
        model.add_outputs(list(cut.values()))
    batch = model.input().partial_shape[0]
    batch_size = batch.get_length() if batch.is_static else 1
    model = _with_images_as_input(model)
    model.reshape(ov.PartialShape([batch_size, -1, -1, 3]))
    config: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT"}
    if precision_hint != "auto":
        config["INFERENCE_PRECISION_HINT"] = precision_hint
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = core.compile_model(model, device, config)
    except RuntimeError as error:
        msg = f"OpenVINO cannot compile {file} for {device} with {config}: {_last_line(error)}"
        raise ValueError(msg) from error
    return Compiled(compiled, batch_size, outputs, raw_outputs, metadata)


def _check_files(file: Path) -> Path:
    """The ``.xml`` or ``.onnx`` file, after a look at what has to be there."""
    if file.suffix == ".bin":
        file = file.with_suffix(".xml")
    if not file.is_file():
        what = f"{file} is a folder" if file.is_dir() else f"There is no model {file}"
        msg = f"{what}: give the model.xml or model.onnx that `anomalib export` has written."
        raise FileNotFoundError(msg)
    if file.suffix not in {".xml", ".onnx"}:
        msg = f"{file} must be an .xml or .onnx file; make one with `anomalib export --export_type openvino`."
        raise ValueError(msg)
    weights = file.with_suffix(".bin")
    if file.suffix == ".xml" and not weights.is_file():
        msg = f"There is no {weights}: the weights have to be beside {file.name}."
        raise FileNotFoundError(msg)
    with file.open("rb") as opened:
        if file.suffix == ".xml" and b"<net" not in opened.read(4096):
            msg = f"{file} is not a model that OpenVINO can read: it does not begin as one."
            raise ValueError(msg)
    return file


def _check_ports(file: Path, model: ov.Model, outputs: dict[str, int]) -> None:
    if "pred_score" not in outputs:
        msg = f"{file} is not a model of anomalib: it has no output pred_score, but {', '.join(sorted(outputs))}."
        raise ValueError(msg)
    shapes = [port.partial_shape for port in model.inputs]
    if len(shapes) != 1 or shapes[0].rank != ov.Dimension(4) or shapes[0][1] != ov.Dimension(3):
        msg = f"{file} must have one input (B, 3, H, W), but has {', '.join(map(str, shapes))}."
        raise ValueError(msg)


def _with_images_as_input(model: ov.Model) -> ov.Model:
    """Scaling to [0, 1] and, for an input of fixed size, resizing inside the model.

    The interpolation is the one that UniAD has inside where its input is of any size: bilinear with antialiasing.
    """
    steps = PrePostProcessor(model)
    fixed = model.input().partial_shape[2].is_static
    tensor = steps.input().tensor()
    tensor.set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    if fixed:
        tensor.set_spatial_dynamic_shape()
    steps.input().model().set_layout(ov.Layout("NCHW"))
    convert = steps.input().preprocess().convert_element_type(ov.Type.f32)
    if fixed:
        convert.resize(ResizeAlgorithm.RESIZE_BILINEAR_PILLOW)
    convert.scale(255.0)
    return steps.build()


def raw_values_of(output: ov.Output) -> ov.Output | None:
    """Score or map before anomalib's post-processor normalises it and cuts it to [0, 1]; ``None`` if it does not.

    The post-processor selects, per a constant, between the normalised and the raw values.
    """
    node = output.node.input_value(0).get_node()
    if node.get_type_name() != "Select":
        return None
    branches = [node.input_value(1), node.input_value(2)]
    kinds = [branch.get_node().get_type_name() for branch in branches]
    others = [branch for branch, kind in zip(branches, kinds, strict=True) if kind not in _CUT]
    return others[0] if len(others) == 1 else None


_CUT = {"Clamp", "Minimum", "Maximum", "Select", "Constant"}


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
