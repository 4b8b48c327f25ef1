# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/training.py measures and writes; never how fast it is."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import training
from anomalib_uniad import UniAD
from anomalib_uniad.model import ReconstructionTransformer
from anomalib_uniad.model.components import neighbor_mask
from harness import CPU
from plain_uniad import ImageFiles, PlainTransformer, loop_mask, plain_loop
from render_tables import render

TINY = {
    "backbone": "resnet18",
    "layers": (0, 1),
    "layer_weights": None,
    "pre_trained": False,
    "image_size": 64,
    "hidden_dim": 16,
    "num_heads": 2,
    "feedforward_dim": 24,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "neighbor_size": 1,
}
ORIGIN = {"device", "versions", "seed", "command", "dtype"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models for --quick, no seed of other tests, and measurements in this process."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.setattr(training, "SMALL", TINY)
    monkeypatch.setattr(training, "matrix_rate", lambda *_: 1e12)
    monkeypatch.setattr(training, "apart", lambda function, arguments: function(**arguments))


@pytest.mark.slow
def test_throughput_and_floor(tmp_path: Path) -> None:
    training.train(
        ["throughput", "step", "embedding", "floor"], num_workers=0, image_pixels=64, output_dir=tmp_path, quick=True
    )
    folder = tmp_path / "quick"
    speed = pd.read_csv(folder / "training_speed.csv")
    names = ["plain loop", "UniAD without cache", "UniAD with cache", "UniAD with cache, bf16"]
    assert speed["variant"].tolist() == names
    assert set(speed) >= ORIGIN
    ratios = speed["seconds_per_step"][0] / speed["seconds_per_step"]
    assert speed["plain_ratio"].tolist() == pytest.approx(ratios.tolist())
    assert speed["build_images_per_second"].notna().tolist() == [False, False, True, True]
    floor = pd.read_csv(folder / "training_floor.csv")
    assert set(floor) >= ORIGIN
    for _, rows in floor.groupby("dtype"):
        parts = rows.set_index("part")
        assert len(parts) == 11
        total = training.count_operations(UniAD(**training.fast_recipe(0, quick=True)), 8)[0]
        assert parts["operations"][training.STEP] == parts["operations"][training.FLOOR] == total
        assert parts["share_of_step"][training.STEP] == 1
        assert parts["seconds_per_step"][training.FLOOR] == pytest.approx(total / 1e12)
        # With one round, what is not in the step without Lightning is Lightning's.
        assert parts["seconds_per_step"][:-2].sum() == pytest.approx(parts["seconds_per_step"][training.STEP])
    steps = pd.read_csv(folder / "training_step.csv")
    assert set(steps) >= ORIGIN
    assert steps["first_ratio"].tolist() == pytest.approx(
        (steps["seconds_per_step"][0] / steps["seconds_per_step"]).tolist()
    )
    embedding = pd.read_csv(folder / "training_embedding.csv")
    assert embedding["at_once"].tolist() == [16, 8, 4, 2, 1]
    assert set(embedding) >= ORIGIN
    for name in ("training_speed", "training_step", "training_embedding", "training_floor"):
        assert "On " in render(f"<!-- table: {name} -->\n<!-- end -->", folder)


def test_ratios_are_those_of_rounds() -> None:
    results = {
        training.PLAIN: [(8.0, None), (9.0, None)],
        training.NO_CACHE: [(4.0, None), (3.0, None)],
        "UniAD with cache": [(2.0, 1.0), (1.0, 3.0)],
    }
    cached = training.throughput_rows(results, images=100)[2]
    assert (cached["plain_ratio"], cached["plain_ratio_min"], cached["plain_ratio_max"]) == (6.5, 4, 9)
    assert (cached["no_cache_ratio"], cached["seconds_per_step"], cached["rounds"]) == (2.5, 1.5, 2)
    assert cached["epochs_per_hour"] == pytest.approx(3600 / (454 * 1.5))
    assert cached["build_images_per_second"] == pytest.approx(100 / 2.0)
    assert cached["build_in_epochs_without_cache"] == pytest.approx(3629 * 2.0 / 100 / (454 * 3.5))


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    training.train(["scaling"], output_dir=tmp_path, work_dir=tmp_path, quick=True)
    written = pd.read_csv(tmp_path / "quick" / "training_scaling.csv")
    assert len(written) == 8
    assert set(written) >= ORIGIN
    assert not list(tmp_path.glob("tmp*"))  # files of features are gone
    on_disk = written["cache"] == "disk"
    features = written["images"] * written["tokens"] * (64 + 64) * 4
    assert (written["disk_bytes"] - features)[on_disk].between(1, 200).all()
    assert (written["disk_bytes"][~on_disk] == 0).all()
    sizes = written[written["series"] == "image size"]
    assert sizes["tokens"].tolist() == [16, 36]
    assert sizes["attention_of_operations"].is_monotonic_increasing
    assert sizes["attention_of_time"].between(0, 1).all()
    assert "Attention has half of the" in render("<!-- table: training_scaling -->\n<!-- end -->", tmp_path / "quick")
    assert cv2.imread(str(tmp_path / "quick" / "training_scaling.png")) is not None


def test_the_cases_of_the_paper() -> None:
    cases = training.scaling_cases(steps=8)
    assert {case["images"] for case in cases if case["series"] == "images"} == {500, 2000, 8000}
    sizes = [(case["image_size"], case["steps"]) for case in cases if case["series"] == "image size"]
    assert sizes == [(224, 8), (320, 4), (448, 3)]
    assert [case["batch_size"] for case in cases if case["series"] == "batch"] == [1, 8, 32, 64]
    for case in cases:  # one epoch is long enough
        assert case["images"] >= case["batch_size"] * (case["steps"] + 2)


def test_the_gpu_part_runs_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = training.gpu_cases((8, 64), 2)
    assert [(case["batch_size"], case["images"], case["compile_mode"]) for case in cases[::3]] == [
        (8, 3624, None),
        (64, 3584, None),
    ]
    case = {**cases[0], "batch_size": 2, "images": 12, "warm_up": 1}
    monkeypatch.setattr(training, "gpu_cases", lambda *_: [case])
    training.measure_gpu(tmp_path / "training_gpu.csv", CPU, (2,), 2, {"model": TINY, "seed": 0})
    row = pd.read_csv(tmp_path / "training_gpu.csv").iloc[0]
    assert row["minutes_for_1000_epochs"] == pytest.approx(1000 * 1815 * row["seconds_per_step"] / 60)
    assert row["utilisation"] == pytest.approx(row["operations_per_step"] * row["steps_per_second"] / 1e12)
    assert {"command", "versions", "seed"} <= set(row.index)
    assert " none |" in render("<!-- table: training_gpu -->\n<!-- end -->", tmp_path)


def test_without_a_gpu_that_part_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    training.train(["gpu"], output_dir=tmp_path)
    assert "There is no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_case_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def measure(function: object, arguments: dict) -> dict:
        if arguments["batch_size"] == 1:
            raise RuntimeError("out of memory")
        return {"seconds_per_step": 1.0}

    monkeypatch.setattr(training, "apart", measure)
    cases = [{"series": "batch", "batch_size": batch} for batch in (1, 2)]
    assert [row["batch_size"] for row in training.measure_cases(cases, {}, "Test")] == [2]
    assert "out of memory" in caplog.text


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("image_size", [80, (64, 96)])
def test_operations_are_those_of_a_step(image_size: int, dropout: float) -> None:
    """Without dropout, attention is one kernel that torch does not count."""
    model = UniAD(**{**TINY, "image_size": image_size, "dropout": dropout}).train()
    features = torch.randn(training.feature_shape(model, 3))
    with FlopCounterMode(display=False) as counter:
        model.loss(model.model.reconstruct(features), features).backward()
    total, attention, update = training.count_operations(model, 3)
    assert update == 0
    if dropout:
        assert total == counter.get_total_flops()
    tokens, attentions = features.shape[2] * features.shape[3], 1 + 2 * 2
    assert attention == 3 * attentions * 2 * 2 * 3 * tokens**2 * 16
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "shapes", "part", "attention"),
    [
        ("aten::addmm", [[256], [1568, 256], [256, 256]], training.LINEAR, False),
        ("aten::bmm", [[64, 196, 196], [64, 196, 32]], training.PRODUCTS, True),
        ("aten::_softmax", [[8, 8, 196, 196], [], []], training.WEIGHTS, True),
        ("aten::masked_fill_", [[196, 196], [196, 196], []], training.WEIGHTS, True),
        ("aten::random_", [[8 * 8 * 196 * 49], [], [], []], training.RANDOM, True),
        ("aten::random_", [[8 * 196 * 64], [], [], []], training.RANDOM, False),
        ("aten::normal_", [[8, 196, 272], [], [], []], training.RANDOM, False),
        ("aten::native_layer_norm", [[8, 196, 256], [], [256], [256], []], training.NORMS, False),
        ("aten::add", [[8, 196, 256], [8, 196, 256], []], training.OTHER, False),
        ("aten::add", [[8, 196, 196], [8, 196, 196], []], training.OTHER, False),  # as many channels as tokens
        ("aten::native_layer_norm", [[8, 196, 196], [], [196], [196], []], training.NORMS, False),
        ("aten::_foreach_add_", [[[256], [3, 256]], []], training.OTHER, False),
        ("autograd::engine::evaluate_function: AddmmBackward0", [], training.OTHER, False),
        ("aten::_efficient_attention_forward", [[8, 196, 8, 32]], training.PRODUCTS, True),
    ],
)
def test_operations_find_their_part(name: str, shapes: list, part: str, attention: bool) -> None:
    assert training.classify(name, shapes, tokens=196, weights=8 * 8 * 196 * 196) == (part, attention)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"device": "tpu"}, "device must be 'auto' or one of 'cpu'.*, got 'tpu'"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        training.train(**{"parts": [], "output_dir": tmp_path, **arguments})


# The plain loop.


@pytest.mark.parametrize("window", [1, 3])
def test_the_mask_of_the_plain_loop_is_ours(window: int) -> None:
    mask = loop_mask(5, 6, window)
    assert torch.equal(mask == 0, neighbor_mask((5, 6), (window, window)))
    assert torch.equal(mask.isinf(), mask != 0)


def test_outputs_and_gradients_of_the_plain_transformer_are_ours() -> None:
    torch.manual_seed(0)
    ours = ReconstructionTransformer(
        10,
        (4, 5),
        hidden_dim=16,
        num_heads=2,
        feedforward_dim=24,
        num_encoder_layers=2,
        num_decoder_layers=2,
        neighbor_size=(3, 3),
        dropout=0.0,
    )
    plain = PlainTransformer(10, (4, 5), dim=16, heads=2, layers=2, inner=24, dropout=0.0, window=3)
    with torch.no_grad():
        for own, other in zip(plain.parameters(), ours.parameters(), strict=True):
            own.copy_(other)
    tokens = torch.randn(3, 20, 10)
    first, second = ours(tokens), plain(tokens)
    torch.testing.assert_close(second, first, atol=1e-5, rtol=0)
    first.square().sum().backward()
    second.square().sum().backward()
    for own, other in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-4, rtol=1e-3)


def test_the_plain_loop_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    small = {"dim": 16, "heads": 2, "inner": 24, "layers": 1, "window": 1, "dropout": 0.0}
    losses = list(plain_loop(paths * 20, CPU, 2, 0, backbone="resnet18", image_size=48, **small))
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_images_are_normalised(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((8, 8, 3), (0, 0, 255), np.uint8))
    image = ImageFiles([tmp_path / "red.png"], 4)[0]
    assert image.shape == (3, 4, 4)
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
