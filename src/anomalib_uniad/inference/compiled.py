# SPDX-License-Identifier: Apache-2.0
"""Reads an exported file and compiles it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
from openvino.preprocess import PrePostProcessor

from anomalib_uniad.errors import InputError, MissingFileError
from anomalib_uniad.geometry import Geometry

from .metadata import ModelMetadata

PrecisionHint = Literal["f32", "bf16", "auto"]

_PRODUCT = ("product", "unknown_product")  # inner tensors of files of models that recognise products
_UNCALIBRATED = {"pred_score": "uncalibrated_score", "anomaly_map": "uncalibrated_map"}  # as well

_VIRTUAL_DEVICES = {"AUTO", "BATCH", "HETERO", "MULTI"}


@dataclass(frozen=True)
class Compiled:
    """A compiled model that takes images as they are read: ``(B, H, W, 3)`` from 0 to 255.

    Args:
        model (ov.CompiledModel): The model.
        batch_size (int): Images per request.
        size (tuple[int, int] | None): Height and width of images; ``None`` for images of any size.
        outputs (dict[str, int]): Position of each output by name: ``pred_score``, ``anomaly_map`` and others; of models
            that recognise products also ``product`` and ``unknown_product``.
        raw_outputs (dict[str, int]): Position of the raw values of outputs that are calibrated or cut to [0, 1], by
            name, as far as the file has them.
        metadata (ModelMetadata): Metadata of the file.
        hash (str): Of the file with its weights.
    """

    model: ov.CompiledModel
    batch_size: int
    size: tuple[int, int] | None
    outputs: dict[str, int]
    raw_outputs: dict[str, int]
    metadata: ModelMetadata
    hash: str = ""

    @property
    def dtype(self) -> type[np.generic]:
        """Type of its images: uint8, or float32 if they are resized before or can have more than 8 bits."""
        return _dtype(self.size, self.metadata)

    def check(self, size: Sequence[int]) -> None:
        """Refuse images that the model cannot look at as it has learned to.

        Args:
            size (Sequence[int]): Height and width of an image.

        Raises:
            ValueError: If its crop does not lie in the image, or it crops or pads images of one other size alone.
        """
        geometry = self.metadata.geometry
        if geometry is not None:
            geometry.check(size)
        if self.size is not None and self.size != (size[0], size[1]) and not _stretches(self.metadata):
            raise InputError(
                f"the image has {size[0]} x {size[1]} pixels (height x width), but the model crops or pads, and the "
                f"file was exported for images of {self.size[0]} x {self.size[1]} alone"
            )


def compile_file(
    file: Path,
    device: str = "CPU",
    precision_hint: PrecisionHint = "f32",
    threads: int = 0,
    performance_hint: Literal["THROUGHPUT", "LATENCY"] = "THROUGHPUT",
) -> Compiled:
    """Read a model that anomalib has exported, and compile it.

    Args:
        file (Path): ``model.xml`` with ``model.bin`` beside it, or an ONNX file.
        device (str): OpenVINO's name of the device. Defaults to ``"CPU"``.
        precision_hint (str): Precision of the computation. Defaults to ``"f32"``.
        threads (int): Threads on the CPU; 0 leaves it to OpenVINO. Defaults to ``0``.
        performance_hint (str): ``"THROUGHPUT"`` for parallel requests, ``"LATENCY"`` for one. Defaults to
            ``"THROUGHPUT"``.

    Returns:
        Compiled: The model, ready for requests.

    Raises:
        FileNotFoundError: If the file or the weights beside it are not there.
        ValueError: If it is no such model, its metadata is malformed, or the device or the number is unknown.
    """
    if threads < 0:
        raise InputError(f"threads must be positive, or 0 for OpenVINO's choice, got {threads}.")
    file = _check_files(file)
    core = ov.Core()
    available = core.available_devices
    known = {*_VIRTUAL_DEVICES, *available, *(name.split(".")[0] for name in available)}  # GPU.1 is one of GPU
    if device not in known and device.split(":")[0] not in _VIRTUAL_DEVICES:
        raise InputError(f"There is no device {device!r}; this machine has {', '.join(available)}, and there is AUTO.")
    model = _read_model(core, file)
    metadata = ModelMetadata.read(model, file)
    outputs = {name: index for index, output in enumerate(model.outputs) for name in output.names}
    _check_ports(file, model, outputs)
    more, raw = _inner_ports(file, model, outputs, bool(metadata.products))
    first = len(model.outputs)
    outputs |= {name: first + index for index, name in enumerate(more)}
    raw_outputs = {name: first + len(more) + index for index, name in enumerate(raw)}
    if more or raw:
        model.add_outputs([*more.values(), *raw.values()])
    batch, _, height, width = model.input().partial_shape
    batch_size = batch.get_length() if batch.is_static else 1
    size = (height.get_length(), width.get_length()) if height.is_static and width.is_static else None
    inside_of = metadata.image_size if _stretches(metadata) else None
    if size and inside_of and any(a < b for a, b in zip(size, inside_of, strict=True)):
        alone, inside = (f"{height} x {width}" for height, width in (size, inside_of))
        raise InputError(
            f"{file} takes images of {alone} pixels alone, which is less than the {inside} that the model works with: "
            "export it again with an --input_size that is not smaller, or without."
        )
    model = _with_images_as_input(model, ov.Type(_dtype(size, metadata)))
    model.reshape(ov.PartialShape([batch_size, *(size or (-1, -1)), 3]))
    config: dict[str, Any] = {"PERFORMANCE_HINT": performance_hint}
    if precision_hint != "auto":
        config["INFERENCE_PRECISION_HINT"] = precision_hint
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = core.compile_model(model, device, config)
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot compile {file} for {device} with {config}: {_last_line(error)}") from error
    return Compiled(compiled, batch_size, size, outputs, raw_outputs, metadata, _hash_of(file))


def read_metadata(file: Path) -> tuple[ModelMetadata, str]:
    """Read the metadata of a model that anomalib has exported, and its hash, without compiling it.

    Args:
        file (Path): As of :func:`compile_file`.

    Returns:
        tuple[ModelMetadata, str]: The metadata, and the hash of the file with its weights.

    Raises:
        FileNotFoundError: If the file or the weights beside it are not there.
        ValueError: If it is no such model, or its metadata is malformed.
    """
    file = _check_files(file)
    return ModelMetadata.read(_read_model(ov.Core(), file), file), _hash_of(file)


def _read_model(core: ov.Core, file: Path) -> ov.Model:
    try:
        return core.read_model(file)
    except RuntimeError as error:
        raise InputError(f"{file} is not a model that OpenVINO can read: {_last_line(error)}") from error


def _hash_of(file: Path) -> str:
    """Of an ``.xml`` and its weights, or of an ``.onnx``, with which decisions can be traced to their model."""
    digest = hashlib.sha256()
    for part in (file, file.with_suffix(".bin")):
        if part.is_file():
            with part.open("rb") as opened:
                while data := opened.read(1 << 20):
                    digest.update(data)
    return digest.hexdigest()[:16]


def _stretches(metadata: ModelMetadata) -> bool:
    """Whether a model stretches whole images, so that these may be stretched before."""
    geometry = metadata.geometry
    return geometry is None or geometry == Geometry(geometry.image_size)


def _dtype(size: tuple[int, int] | None, metadata: ModelMetadata) -> type[np.generic]:
    return np.float32 if size or metadata.value_range else np.uint8


def computes_in_bf16(compiled: Compiled) -> bool:
    """Whether a model runs in bfloat16; ``True`` if the device does not tell."""
    try:
        return str(compiled.model.get_property("INFERENCE_PRECISION_HINT").get_type_name()) == "bf16"
    except RuntimeError:
        return True


def _check_files(file: Path) -> Path:
    """Check that a model's files are there; return the ``.xml`` or ``.onnx``."""
    if file.suffix == ".bin":
        file = file.with_suffix(".xml")
    if not file.is_file():
        what = f"{file} is a folder" if file.is_dir() else f"There is no model {file}"
        raise MissingFileError(f"{what}: give the model.xml or model.onnx that `anomalib export` has written.")
    if file.suffix not in {".xml", ".onnx"}:
        msg = f"{file} must be an .xml or .onnx file; make one with `anomalib export --export_type openvino`."
        raise InputError(msg)
    weights = file.with_suffix(".bin")
    if file.suffix == ".xml" and not weights.is_file():
        raise MissingFileError(f"There is no {weights}: the weights have to be beside {file.name}.")
    with file.open("rb") as opened:
        if file.suffix == ".xml" and b"<net" not in opened.read(4096):
            raise InputError(f"{file} is not a model that OpenVINO can read: it does not begin as one.")
    return file


def _check_ports(file: Path, model: ov.Model, outputs: dict[str, int]) -> None:
    if "pred_score" not in outputs:
        msg = f"{file} is not a model of anomalib: it has no output pred_score, but {', '.join(sorted(outputs))}."
        raise InputError(msg)
    shapes = [port.partial_shape for port in model.inputs]
    if len(shapes) != 1 or shapes[0].rank != ov.Dimension(4) or shapes[0][1] != ov.Dimension(3):
        raise InputError(f"{file} must have one input (B, 3, H, W), but has {', '.join(map(str, shapes))}.")


def _with_images_as_input(model: ov.Model, element_type: ov.Type) -> ov.Model:
    """Put layout conversion and scaling to [0, 1] into the model."""
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(element_type).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    return steps.build()


def _inner_ports(
    file: Path, model: ov.Model, outputs: dict[str, int], recognises: bool
) -> tuple[dict[str, ov.Output], dict[str, ov.Output]]:
    """What becomes an output as well: what is known of products, and raw values, both by name."""
    names = [name for name in _UNCALIBRATED if name in outputs]
    if not recognises:
        ports = {name: raw_values_of(model.output(name)) for name in names}
        return {}, {name: port for name, port in ports.items() if port is not None}
    inner = {name: port for node in model.get_ops() for port in node.outputs() for name in port.names}
    # Files of earlier versions do not have the map.
    if lacking := [name for name in (*_PRODUCT, _UNCALIBRATED["pred_score"]) if name not in inner]:
        raise InputError(f"{file} lacks the tensors {', '.join(lacking)} of its metadata: export it again.")
    raw = {name: inner[_UNCALIBRATED[name]] for name in names if _UNCALIBRATED[name] in inner}
    return {name: inner[name] for name in _PRODUCT}, raw


def raw_values_of(output: ov.Output) -> ov.Output | None:
    """Find score or map before anomalib's post-processor normalises it and cuts it to [0, 1]; ``None`` if it does not.

    anomalib's post-processor selects between normalised and raw values by a constant. In files of fixed shape, and in
    those of UniAD, there is no selection, and only the steps of the normalisation are left: cut, shift (unless the
    threshold lies where there is nothing to shift) and scale.
    """
    port = output.node.input_value(0)
    if _kind(port) == "Select":
        branches = [port.get_node().input_value(1), port.get_node().input_value(2)]
        others = [branch for branch in branches if _kind(branch) not in {*_CUT, "Select", "Constant"}]
        return others[0] if len(others) == 1 else None
    for kinds, least, most in ((_CUT, 1, 2), (_SHIFT, 0, 2), (_SCALE, 1, 1), (_SHIFT, 0, 1)):
        for number in range(most):
            before = _before(port) if _kind(port) in kinds else None
            if before is None and number < least:
                return None
            port = before or port
    return port


_CUT, _SHIFT, _SCALE = {"Clamp", "Minimum", "Maximum"}, {"Add", "Subtract"}, {"Multiply", "Divide"}


def _kind(port: ov.Output) -> str:
    return str(port.get_node().get_type_name())


def _before(port: ov.Output) -> ov.Output | None:
    """The input of an operation whose other inputs are constant."""
    inputs = [value for value in port.get_node().input_values() if not _is_constant(value)]
    return inputs[0] if len(inputs) == 1 else None


def _is_constant(port: ov.Output) -> bool:
    if _kind(port) == "Convert":  # constants in float16
        port = port.get_node().input_value(0)
    return _kind(port) == "Constant"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
