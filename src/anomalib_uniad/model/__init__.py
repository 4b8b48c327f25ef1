# SPDX-License-Identifier: Apache-2.0
"""UniAD: torch model and Lightning module."""

# First of all: at its end anomalib loads this package's entry points, which import the modules below.
import anomalib.models  # noqa: F401

from .lightning_model import UniAD
from .torch_model import ReconstructionTransformer, UniADModel

__all__ = ["ReconstructionTransformer", "UniAD", "UniADModel"]
