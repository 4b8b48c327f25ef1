# SPDX-License-Identifier: Apache-2.0
"""bfloat16 where the device is faster with it, and a resumed training goes on as it was."""

from typing import Any

import pytest
import torch
from anomalib.data import ImageBatch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from anomalib_uniad import UniAD
from anomalib_uniad.training import muon, precision
from resumable import small_model


class Recorder(UniAD):
    """Remembers the data types of reconstructions."""

    def _reconstruct(self, features: torch.Tensor) -> torch.Tensor:
        found = super()._reconstruct(features)
        self.seen = found.dtype
        self.iteration = self.optimizers().param_groups[0]["bfloat16"]
        return found


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr("anomalib_uniad.model.lightning_model.bfloat16_is_faster", lambda device: request.param)


def train(auto: bool, trainer_precision: Any, **state: Any) -> UniAD:
    arguments = small_model(5, optimizer="muon", evaluator=False).hparams
    model = Recorder(**{**arguments, "auto_precision": auto})
    for name, value in state.items():
        setattr(model, name, value)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, precision=trainer_precision, **quiet, enable_model_summary=False)
    trainer.fit(model, DataLoader([ImageBatch(image=torch.rand(2, 3, 64, 64))], batch_size=None))
    return model


@pytest.mark.parametrize(
    ("faster", "auto", "given", "expected"),
    [
        (True, True, None, torch.bfloat16),
        (False, True, None, torch.float32),
        (True, False, None, torch.float32),
        (False, True, "bf16-mixed", torch.bfloat16),
    ],
    indirect=["faster"],
)
def test_step(faster: None, auto: bool, given: str | None, expected: torch.dtype) -> None:
    model = train(auto, given)
    assert model.seen == expected
    assert model.iteration is (given is None and expected == torch.bfloat16), "Muon's"
    assert all(parameter.dtype == torch.float32 for parameter in model.model.transformer.parameters())


@pytest.mark.parametrize("faster", [True], indirect=True)
def test_a_resumed_training_keeps_its_precision(faster: None) -> None:
    model = train(True, None)
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["bfloat16"] is True
    assert train(True, None, _bfloat16=False).seen == torch.float32


@pytest.mark.parametrize("saved", [True, False])
def test_muons_iteration_is_in_bfloat16_only_if_it_was_and_is_to_be(saved: bool) -> None:
    parameter = torch.nn.Parameter(torch.eye(3))
    parameter.grad = torch.tensor([[3.0, 1, 0], [0, 2, 0], [0, 0, 1]])
    optimizer = muon.Muon([parameter], [], bfloat16=not saved)
    optimizer.load_state_dict(muon.Muon([parameter], [], bfloat16=saved).state_dict())
    optimizer.step()
    step = muon.orthogonalise(parameter.grad[None])[0]
    torch.testing.assert_close(parameter.detach(), torch.eye(3) - 0.01 * step, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("seconds", "expected"), [((3.0, 1.0), True), ((1.2, 1.0), False), ((1.0, 16.0), False)])
def test_measurement(monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], expected: bool) -> None:
    """With a clock that advances by so much per product."""
    clock = [0.0]
    costs = dict(zip((torch.float32, torch.bfloat16), seconds, strict=True))

    class Matrix:
        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

        def __matmul__(self, other: "Matrix") -> torch.Tensor:
            clock[0] += costs[self.dtype]
            return torch.zeros(1, 1)

    monkeypatch.setattr(precision.torch, "ones", lambda *size, dtype, device: Matrix(dtype))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    assert precision.bfloat16_is_faster.__wrapped__(torch.device("cpu")) is expected


def test_other_devices_are_left_alone() -> None:
    assert precision.bfloat16_is_faster(torch.device("meta")) is False
