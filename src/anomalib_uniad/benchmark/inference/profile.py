# SPDX-License-Identifier: Apache-2.0
"""Where OpenVINO's time goes, layer by layer, and how many operations each part has."""

import ast
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import openvino as ov

from .speed import one_image

BACKBONE, NECK, ENCODER, DECODER, HEAD, INPUT = "backbone", "neck", "encoder", "decoder", "head", "input"
PARTS = (INPUT, BACKBONE, NECK, ENCODER, DECODER, HEAD)
# Beginnings of the names of modules -> part, the first that fits.
_MODULES = {
    "pre_processor": INPUT,
    "model.backbone": BACKBONE,
    "model.neck": NECK,
    "model.transformer.decoder": DECODER,
    "model.transformer.output_projection": DECODER,
    "model.transformer": ENCODER,
    "model.anomaly_map": HEAD,
    "model.score": HEAD,
    "post_processor": HEAD,
}
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass
class Profile:
    """Time and operations of one image.

    Attributes:
        seconds (dict[tuple[str, str], float]): (part, type of layer) -> seconds.
        operations (dict[str, int]): Part -> operations of matrix products and convolutions; an addition counts as one.
    """

    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)


def parts_of(onnx_file: Path) -> dict[str, str]:
    """Tell to which part of UniAD each node belongs, by the names of torch's modules in an ONNX file.

    Args:
        onnx_file (Path): The file.

    Returns:
        dict[str, str]: Name of a node, or of one of its outputs -> part.
    """
    import onnx  # a package of the extra `openvino`

    parts = {}
    for node in onnx.load(onnx_file, load_external_data=False).graph.node:
        scopes = [ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == _SCOPES]
        modules = [name for name in (scopes[0] if scopes else []) if name]
        for prefix, part in _MODULES.items():
            if any(name == prefix or name.startswith(f"{prefix}.") for name in modules):
                parts.update(dict.fromkeys((node.name, *node.output), part))
                break
    return parts


def profile(
    file: Path, parts: Mapping[str, str], images: Sequence[np.ndarray], precision: str = "f32", threads: int = 0
) -> Profile:
    """Measure a file layer by layer.

    Args:
        file (Path): The file.
        parts (Mapping[str, str]): Of :func:`parts_of`.
        images (Sequence[np.ndarray]): Each ``(1, 3, H, W)``.
        precision (str): Precision of the computation. Defaults to ``"f32"``.
        threads (int): Threads; 0 takes all cores. Defaults to ``0``.
    """
    core = ov.Core()
    model = one_image(core.read_model(file))
    found = Profile(operations=operations(model, parts))
    config = {"PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    times: dict[str, list[float]] = defaultdict(list)
    types: dict[str, str] = {}
    request.infer({0: images[0]})  # warm
    for image in images:
        request.infer({0: image})
        for layer in request.profiling_info:
            times[layer.node_name].append(layer.real_time.total_seconds())
            types[layer.node_name] = layer.node_type
    places = _places(compiled.get_runtime_model(), parts)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for name, measured in times.items():
        seconds[places.get(name, HEAD), types[name]] += median(measured)
    found.seconds = {place: value for place, value in seconds.items() if value > 0}
    return found


def operations(model: ov.Model, parts: Mapping[str, str]) -> dict[str, int]:
    """Count the operations of matrix products and convolutions, part by part.

    Args:
        model (ov.Model): The model, of fixed shape.
        parts (Mapping[str, str]): Of :func:`parts_of`.
    """
    counts = dict.fromkeys(PARTS, 0)
    previous = INPUT
    for node in model.get_ordered_ops():
        previous = _part(node.get_friendly_name(), parts) or previous
        kind = node.get_type_name()
        if kind in {"Convolution", "GroupConvolution"}:
            weights = list(node.input_value(1).shape)  # (O, I, ...) or (groups, O, I, ...)
            inner = math.prod(weights[1:] if kind == "Convolution" else weights[2:])
        elif kind == "MatMul":
            shape, transposed = node.input_value(0).shape, node.get_attributes()["transpose_a"]
            inner = shape[-2] if transposed else shape[-1]
        else:
            continue
        counts[previous] += 2 * math.prod(node.output(0).shape) * inner
    return counts


def _places(runtime: ov.Model, parts: Mapping[str, str]) -> dict[str, str]:
    """Part of each layer as it is executed: that of the layers it was made of, else of the layer before it."""
    places: dict[str, str] = {}
    for node in runtime.get_ordered_ops():
        info = node.get_rt_info()
        names = str(info["originalLayersNames"].value).split(",") if "originalLayersNames" in info else []
        found = [part for name in (*names, node.get_friendly_name()) if (part := _part(name, parts))]
        before = [places[value.get_node().get_friendly_name()] for value in node.input_values()]
        places[node.get_friendly_name()] = found[0] if found else before[0] if before else INPUT
    return places


def _part(name: str, parts: Mapping[str, str]) -> str | None:
    """Part of a node; transformations put something behind the names of the nodes that they were made of."""
    if name in parts:
        return parts[name]
    stem = name.split("/")[0].split(".")[0]
    return parts.get(stem)
