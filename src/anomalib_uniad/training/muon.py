# SPDX-License-Identifier: Apache-2.0
"""Muon for matrices and AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer

# Coefficients and number of steps of the quintic iteration at https://kellerjordan.github.io/posts/muon/.
_A, _B, _C, _STEPS = 3.4445, -4.7750, 2.0315, 5


def orthogonalise(matrices: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Replace the singular values of matrices by values near 1, five Newton-Schulz steps for all of them together.

    The iteration (https://kellerjordan.github.io/posts/muon/) is made for speed: the new singular values lie between
    about 0.7 and 1.2, those of directions that hardly occur below.

    Args:
        matrices (torch.Tensor): ``(n, rows, columns)``.
        dtype (torch.dtype): In what is computed. Defaults to ``torch.float32``.

    Returns:
        torch.Tensor: ``(n, rows, columns)``, in ``dtype``; a matrix of zeros stays one.

    Examples:
        >>> orthogonalise(torch.diag(torch.tensor([3.0, 2.0]))[None]).squeeze().round(decimals=1)
        tensor([[1.1000, 0.0000],
                [0.0000, 0.7000]])
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)  # (n, r, c), r <= c: the products below are the smaller ones
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon (https://kellerjordan.github.io/posts/muon/) for matrices, AdamW for all other parameters.

    Muon moves a matrix along its orthogonalised momentum, so that all directions learn equally fast, however much the
    gradient prefers a few. It is meant for matrices between hidden layers, not for what touches the data, nor for
    vectors and embeddings. Both parts are one optimizer with two groups of parameters, whose key ``"muon"`` tells them
    apart: one schedule, one state, one gradient clipping.

    A state that is loaded brings its own precision of the iteration, so that a training goes on as it was; but where
    this optimizer is not to use bfloat16, it does not.

    Args:
        matrices (Iterable[torch.nn.Parameter]): Matrices, for Muon, and weights of convolutions, which are taken as
            matrices with a row per output.
        others (Iterable[torch.nn.Parameter]): All others, for AdamW.
        muon_learning_rate (float): Learning rate of Muon: the step of a square matrix, as a spectral norm.
            Defaults to ``0.01``.
        momentum (float): Of Muon, Nesterov's. Defaults to ``0.95``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``1e-3``.
        weight_decay (float): Weight decay of AdamW; Muon has none. Defaults to ``1e-4``.
        fused (bool): Use torch's fused kernels for AdamW. Defaults to ``False``.
        bfloat16 (bool): Compute Muon's iteration in bfloat16 instead of float32. Defaults to ``False``.

    Raises:
        ValueError: If one of the matrices is none.

    Examples:
        >>> layer = torch.nn.Linear(4, 4)
        >>> optimizer = Muon([layer.weight], [layer.bias])
        >>> [(group["muon"], group["lr"]) for group in optimizer.param_groups]
        [(True, 0.01), (False, 0.001)]
    """

    directions = staticmethod(orthogonalise)
    """What matrices of one shape are moved along, from their momenta."""

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        muon_learning_rate: float = 0.01,
        momentum: float = 0.95,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        fused: bool = False,
        bfloat16: bool = False,
    ) -> None:
        groups: list[dict[str, Any]] = [
            {
                "params": list(matrices),
                "muon": True,
                "lr": muon_learning_rate,
                "momentum": momentum,
                "bfloat16": bfloat16,
            },
            {"params": list(others), "muon": False, "lr": learning_rate, "weight_decay": weight_decay, "fused": fused},
        ]
        for parameter in groups[0]["params"]:
            if parameter.dim() < 2:
                raise ValueError(f"Muon is for matrices, got a parameter of shape {tuple(parameter.shape)}.")
        super().__init__(groups, {"fused": fused})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; bfloat16 only if both have it, as the device may be another one."""
        bfloat16 = self.param_groups[0]["bfloat16"]
        super().load_state_dict(state_dict)
        self.param_groups[0]["bfloat16"] &= bfloat16

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure (Callable[[], Any] | None): Computes the loss and the gradients anew. Defaults to ``None``.

        Returns:
            Any: What ``closure`` returns, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._muon if group["muon"] else self._adamw)(parameters, group)
        return loss

    def _muon(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = _gradients(parameters)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
        dtype = torch.bfloat16 if group["bfloat16"] else torch.float32
        # Views, which the steps change in place.
        flat = [
            (parameter.view(len(parameter), -1), direction.flatten(1))
            for parameter, direction in zip(parameters, directions, strict=True)
        ]
        pairs = sorted(flat, key=lambda pair: tuple(pair[0].shape))
        for (rows, columns), same in groupby(pairs, key=lambda pair: tuple(pair[0].shape)):
            moved, along = zip(*same, strict=True)
            steps = self.directions(torch.stack(along), dtype).unbind()
            rate = group["lr"] * max(1, rows / columns) ** 0.5
            torch._foreach_add_(list(moved), [step.to(moved[0].dtype) for step in steps], alpha=-rate)

    def _adamw(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            [*parameters],
            _gradients(parameters),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def _gradients(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
