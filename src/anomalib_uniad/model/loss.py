# SPDX-License-Identifier: Apache-2.0
"""Loss of UniAD."""

import torch
from torch import nn
from torch.nn import functional as F


class ReconstructionLoss(nn.Module):
    """Mean squared error over all elements between reconstructed and clean features (UniAD, equation 5)."""

    def forward(self, reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Both ``(B, C, h, w)`` -> scalar, in float32 also under autocast."""
        return F.mse_loss(reconstruction.float(), target.float())
