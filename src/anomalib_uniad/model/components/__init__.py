# SPDX-License-Identifier: Apache-2.0
"""The parts of UniAD; each file is one box of Figure 3 of the paper."""

from .attention import NeighborMaskedAttention, neighbor_mask
from .backbone import Backbone
from .decoder import LayerwiseQueryDecoder
from .encoder import NeighborMaskedEncoder
from .feature_norm import FeatureNorm
from .jitter import FeatureJitter
from .neck import MultiScaleNeck
from .position import LearnedPosition, SinePosition

__all__ = [
    "Backbone",
    "FeatureJitter",
    "FeatureNorm",
    "LayerwiseQueryDecoder",
    "LearnedPosition",
    "MultiScaleNeck",
    "NeighborMaskedAttention",
    "NeighborMaskedEncoder",
    "SinePosition",
    "neighbor_mask",
]
