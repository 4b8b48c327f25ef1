# SPDX-License-Identifier: Apache-2.0
"""Prediction with an exported model: needs OpenVINO, OpenCV, numpy and Pillow, neither torch nor anomalib."""

from typing import TYPE_CHECKING, Any

from .command import predict
from .heatmap import map_to_image
from .metadata import ModelMetadata
from .regions import Region

if TYPE_CHECKING:
    from .inspector import Inspection, Inspector

__all__ = ["Inspection", "Inspector", "ModelMetadata", "Region", "map_to_image", "predict"]


def __getattr__(name: str) -> Any:
    """Import what needs OpenVINO, which is in an extra, when it is asked for."""
    if name in {"Inspection", "Inspector"}:
        from . import inspector

        return getattr(inspector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
