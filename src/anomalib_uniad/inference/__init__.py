# SPDX-License-Identifier: Apache-2.0
"""Prediction with an exported model: needs OpenVINO, numpy and Pillow, neither torch nor anomalib."""

from .command import predict
from .heatmap import map_to_image
from .metadata import ModelMetadata

__all__ = ["ModelMetadata", "map_to_image", "predict"]
