# SPDX-License-Identifier: Apache-2.0
"""A model file as small as can be, with the inputs and outputs of anomalib's exports."""

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from anomalib_uniad.inference import ModelMetadata

SIZE = 8
THRESHOLD, LOW, HIGH = 0.5, 0.4, 0.6
NORMALISED = ModelMetadata(
    model="UniAD",
    image_size=(SIZE, SIZE),
    categories=("bottle", "cable"),
    thresholds={"image": THRESHOLD, "pixel": THRESHOLD},
    category_thresholds={"bottle": {"image": 0.45}, "cable": {"image": 0.8}},
    normalization={"image_min": LOW, "image_max": HIGH, "pixel_min": LOW, "pixel_max": HIGH},
)


def save_tiny(
    file: Path,
    metadata: ModelMetadata | None = NORMALISED,
    *,
    normalise: bool = True,
    raw_branch: bool = True,
    batch: int = -1,
    size: int = -1,
) -> Path:
    """Save a model whose map is the image's brightness at 8 x 8 pixels and whose score is its largest value.

    Args:
        file: The ``.xml``.
        metadata: What is written into it.
        normalise: Normalise, cut to [0, 1] and decide as anomalib's post-processor does.
        raw_branch: With the selection between normalised and raw score that anomalib's has.
        batch: Fixed batch size; -1 is any.
        size: Fixed height and width of the input; -1 is any.
    """
    images = ops.parameter(ov.PartialShape([batch, 3, size, size]), np.float32, name="input")
    images.output(0).set_names({"input"})
    grey = ops.reduce_mean(images, ops.constant([1]), keep_dims=True)
    to_size = ops.constant([SIZE, SIZE], dtype=np.int64)
    values = ops.interpolate(grey, to_size, "linear", "sizes", axes=ops.constant([2, 3], dtype=np.int64))
    score = ops.reduce_max(values, ops.constant([1, 2, 3]))
    outputs = {"pred_score": score, "anomaly_map": values}
    if normalise:
        outputs = {name: _normalise(node, raw_branch) for name, node in outputs.items()}
        outputs["pred_label"] = ops.greater(outputs["pred_score"], np.float32(0.5))
    for name, node in outputs.items():
        node.output(0).set_names({name})
    model = ov.Model([ops.result(node, name=name) for name, node in outputs.items()], [images])
    if metadata is not None:
        metadata.write(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, file, compress_to_fp16=False)
    return file


def _normalise(values: ov.Node, raw_branch: bool) -> ov.Node:
    scaled = ops.divide(ops.subtract(values, np.float32(THRESHOLD)), np.float32(HIGH - LOW))
    cut = ops.clamp(ops.add(scaled, np.float32(0.5)), 0.0, 1.0)
    return ops.select(ops.constant(True), cut, values) if raw_branch else cut
