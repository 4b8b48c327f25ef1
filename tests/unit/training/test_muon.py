# SPDX-License-Identifier: Apache-2.0
"""Muon and AdamW in one optimizer."""

import copy

import pytest
import torch
from torch import nn

from anomalib_uniad.training.muon import Muon, orthogonalise

SHAPES = ((12, 4), (4, 4), (4, 12), (12, 4))


def matrices(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def others() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(9)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5,), (3, 2), ())]


def train(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 96, 32), (2, 32, 128)])
def test_orthogonalise_keeps_the_singular_vectors(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    got = orthogonalise(matrices, dtype).float()
    inner = u.mT @ got @ vh.mT  # in the basis of the singular vectors: diagonal, near 1 where there was something
    tolerance = 1e-3 if dtype == torch.float32 else 0.15
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < tolerance
    found = inner.diagonal(dim1=-2, dim2=-1)[values > 0.05 * values.amax(dim=1, keepdim=True)]
    assert 0.6 < found.min() < found.max() < 1.3
    together = [orthogonalise(one[None], dtype)[0].float() for one in matrices]
    torch.testing.assert_close(got, torch.stack(together), rtol=0, atol=tolerance / 10)


def test_orthogonalise_leaves_zeros() -> None:
    assert orthogonalise(torch.zeros(2, 3, 5)).equal(torch.zeros(2, 3, 5))


def test_matrices_move_as_with_torch() -> None:
    """Its iteration is in bfloat16."""
    ours, theirs = matrices(), matrices()
    reference = torch.optim.Muon(theirs, lr=0.1, momentum=0.9, weight_decay=0.0)
    train(Muon(ours, [], muon_learning_rate=0.1, momentum=0.9, bfloat16=True), ours, steps=4)
    train(reference, theirs, steps=4)
    for own, other, start in zip(ours, theirs, matrices(), strict=True):
        moved = (own - start).norm()
        assert moved > 0.3
        assert (own - other).norm() < 0.05 * moved


def test_convolutions_move_as_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    convolution, matrix = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    train(Muon([convolution], []), [convolution], steps=3)
    train(Muon([matrix], []), [matrix], steps=3)
    assert not convolution.equal(weight)
    assert convolution.flatten(1).equal(matrix)


@pytest.mark.parametrize("fused", [False, True])
def test_others_move_as_with_torch(fused: bool) -> None:
    ours, theirs, mixed = others(), others(), matrices()
    reference = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.02, fused=fused)
    train(Muon(mixed, ours, learning_rate=0.1, weight_decay=0.02, fused=fused), ours, steps=5)
    train(reference, theirs, steps=5)
    assert all(own.equal(other) for own, other in zip(ours, theirs, strict=True))
    assert all(own.equal(start) for own, start in zip(mixed, matrices(), strict=True)), "no gradient, no step"


@pytest.mark.parametrize("fused", [False, True])
def test_state_is_restored_exactly(fused: bool) -> None:
    parameters = [*matrices(), *others()]
    optimizer = Muon(parameters[:4], parameters[4:], fused=fused)
    train(optimizer, parameters, steps=3)
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    resumed = Muon(copies[:4], copies[4:], muon_learning_rate=7.0, fused=fused)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.param_groups[0]["lr"] == 0.01
    for both in ((optimizer, parameters), (resumed, copies)):
        train(*both, steps=2, seed=2)
    assert all(own.equal(other) for own, other in zip(parameters, copies, strict=True))


def test_loss_scaling() -> None:
    """As with 16-bit floats: gradients are unscaled before the step, which is left out if one is not finite."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled, plain = ([*matrices(), *others()] for _ in range(2))
    ours, reference = Muon(scaled[:4], scaled[4:]), Muon(plain[:4], plain[4:])
    for factor, parameters in ((1024, scaled), (1, plain)):
        (sum(parameter.sum() for parameter in parameters) * factor).backward()
    scaler.scale(torch.zeros(()))  # makes the scale
    scaler.step(ours)
    scaler.update()
    reference.step()
    for own, other in zip(scaled, plain, strict=True):
        torch.testing.assert_close(own, other)
    before = scaled[0].detach().clone()
    scaled[0].grad[0, 0] = torch.inf
    scaler.step(ours)
    assert scaled[0].equal(before)


def test_closure() -> None:
    weight = nn.Parameter(torch.eye(3))
    optimizer = Muon([weight], [])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3
    assert weight.square().sum() < 3


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Muon is for matrices, got a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], [])
