# SPDX-License-Identifier: Apache-2.0
"""Operations are those that torch counts; the parts of a step add up."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.training import breakdown, floor
from anomalib_uniad.benchmark.training.lightning_run import GeneratedFeatures, feature_shape, write_features
from anomalib_uniad.benchmark.training.operations import (
    half_attention_tokens,
    matrix_rate,
    operations,
    operations_of,
)
from anomalib_uniad.training.feature_build import MemoryWriter

CPU = torch.device("cpu")
SMALL = {
    "backbone": "resnet10_synthetic",
    "layers": (0, 1),
    "pre_trained": False,
    "image_size": 80,
    "hidden_dim": 16,
    "num_heads": 2,
    "feedforward_dim": 24,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "neighbor_size": 1,
    "resume_interval": 0,
}


@pytest.mark.parametrize("image_size", [80, (64, 96)])
def test_operations_are_those_of_the_real_step(image_size) -> None:
    model = UniAD(**{**SMALL, "image_size": image_size}).train()
    features = torch.randn(feature_shape(model, 3))
    with FlopCounterMode(display=False) as counter:
        model.loss(model.model.reconstruct(features), features).backward()
    products = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    counted = operations_of(model, batch=3)
    assert counted.total == counter.get_total_flops()
    assert counted.attention == products["aten.bmm"]


def test_attention_grows_as_the_square_of_the_tokens() -> None:
    one, two = operations(8, 196), operations(8, 4 * 196)
    assert two.attention == 16 * one.attention
    assert two.linear == 4 * one.linear


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_where_attention_has_a_share(share: float) -> None:
    tokens = half_attention_tokens(share)
    assert operations(8, tokens).attention_share >= share > operations(8, tokens - 1).attention_share


def test_the_matrix_rate_is_a_rate() -> None:
    assert 1e8 < matrix_rate(CPU, torch.float32, seconds=0.01) < 1e16


@pytest.mark.parametrize(
    ("name", "shapes", "part", "attention"),
    [
        ("aten::addmm", [[256], [1568, 256], [256, 256]], breakdown.LINEAR, False),
        ("aten::bmm", [[64, 196, 196], [64, 196, 32]], breakdown.PRODUCTS, True),
        ("aten::_softmax", [[8, 8, 196, 196], [], []], breakdown.WEIGHTS, True),
        ("aten::masked_fill_", [[196, 196], [196, 196], []], breakdown.WEIGHTS, True),
        ("aten::random_", [[8 * 8 * 196 * 49], [], [], []], breakdown.RANDOM, True),
        ("aten::random_", [[8 * 196 * 64], [], [], []], breakdown.RANDOM, False),
        ("aten::normal_", [[8, 196, 272], [], [], []], breakdown.RANDOM, False),
        ("aten::native_layer_norm", [[8, 196, 256], [], [256], [256], []], breakdown.NORMS, False),
        ("aten::add", [[8, 196, 256], [8, 196, 256], []], breakdown.OTHER, False),
        ("aten::_foreach_add_", [[[256], [3, 256]], []], breakdown.OTHER, False),
        ("autograd::engine::evaluate_function: AddmmBackward0", [], breakdown.OTHER, False),
        ("aten::_efficient_attention_forward", [[8, 196, 8, 32]], breakdown.PRODUCTS, True),
    ],
)
def test_operations_find_their_part(name: str, shapes: list, part: str, attention: bool) -> None:
    assert breakdown.classify(name, shapes, tokens=196, weights=8 * 8 * 196 * 196) == (part, attention)


def test_a_step_is_broken_down() -> None:
    model = UniAD(**SMALL)
    memory = MemoryWriter()
    write_features(memory, feature_shape(model, 6))
    assert np.isfinite(memory.arrays["features"]).all()
    step = breakdown.BareStep(model, GeneratedFeatures(memory.arrays, 3, CPU), CPU, bf16=True)
    before = model.model.transformer.output_projection.weight.clone()
    parts = breakdown.break_down(step, 1, 3)
    assert not torch.equal(before, model.model.transformer.output_projection.weight)
    assert set(parts.parts) == {
        *(breakdown.DATA, breakdown.LINEAR, breakdown.PRODUCTS, breakdown.WEIGHTS),
        *(breakdown.RANDOM, breakdown.NORMS, breakdown.OTHER, breakdown.UPDATE),
    }
    assert all(seconds > 0 for seconds in parts.parts.values())
    assert parts.total == pytest.approx(sum(parts.parts.values()))
    assert 0 < parts.attention_share < 1


def test_the_floor_has_a_row_per_part(monkeypatch) -> None:
    monkeypatch.setattr(floor, "matrix_rate", lambda *_: 1e12)
    rows = floor.measure(CPU, "32-true", rounds=1, steps=2, seed=0, model=SMALL)
    by_part = {row["part"]: row for row in rows}
    assert [row["part"] for row in rows[-2:]] == [floor.STEP, floor.FLOOR]
    total = operations_of(UniAD(**SMALL), 8).total
    assert by_part[floor.STEP]["operations"] == by_part[floor.FLOOR]["operations"] == total
    assert by_part[floor.STEP]["share_of_step"] == 1
    assert by_part[floor.FLOOR]["seconds_per_step"] == pytest.approx(total / 1e12)
    # With one round, what is not in the bare step is Lightning's.
    parts = sum(row["seconds_per_step"] for row in rows[:-2])
    assert parts == pytest.approx(by_part[floor.STEP]["seconds_per_step"])
