# SPDX-License-Identifier: Apache-2.0
"""What the comparison of optimizers takes apart: length and directions of a step, and the features' condition."""

import pytest
import torch

import optimizers
from anomalib_uniad.training.muon import Muon


def moved(cls: type[Muon]) -> torch.Tensor:
    """By how much a first step moves a matrix whose gradient prefers one direction."""
    torch.manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(8, 4))
    matrix.grad = torch.randn(8, 4) + 20
    cls([matrix], [], 0.1).step()
    return matrix.detach()


def test_a_step_of_muons_length_has_fewer_directions() -> None:
    along, orthogonal = moved(optimizers.Lengthened), moved(Muon)
    assert along.norm().item() == pytest.approx(0.1 * 2**0.5 * 4**0.5, rel=1e-5)
    assert orthogonal.norm().item() == pytest.approx(along.norm().item(), rel=0.3)
    assert optimizers.effective_rank(along) < 2 < 3 < optimizers.effective_rank(orthogonal)


def test_features() -> None:
    torch.manual_seed(0)
    features = torch.einsum("cd,bdhw->bchw", torch.randn(3, 3), torch.randn(50, 3, 4, 4)) + 5
    standard = optimizers.prepare(features, features, "standard")
    torch.testing.assert_close(standard.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    white = optimizers.prepare(features, features, "white")
    assert optimizers.condition(white) == pytest.approx(1, abs=1e-3)
    assert optimizers.condition(standard) > 1.5
