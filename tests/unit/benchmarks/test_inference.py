# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/inference.py measures, counts and writes; never how fast it is."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pandas as pd
import pytest
import torch
from openvino import opset13 as ops

import harness
import inference
from harness import CPU
from inference import Models
from render_tables import render
from tiny_openvino import SIZE, save_tiny

IMAGE = np.full((1, 3, SIZE, SIZE), 0.5, np.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("work"), inference.SMALL, training_images=20, calibration_images=3, seed=0)


def test_uniad_decides_about_generated_images(models: Models) -> None:
    with torch.inference_mode():
        result = models.uniad(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert 0 < result.pred_label.sum() < 4
    assert (result.pred_score >= 0).all()
    assert (result.pred_score <= 1).all()


def test_banks_are_as_large_as_those_of_so_many_images(models: Models) -> None:
    assert models.bank("patchcore_10") == 20 * 8 * 8 // 10
    assert models.bank("patchcore_1") == 20 * 8 * 8 // 100
    assert models.bank("padim") is None
    paper = Models.__new__(Models)
    paper._training, paper.image_size = 648, (224, 224)
    assert paper.bank("patchcore_10") == 50_803


@pytest.mark.parametrize("name", ["patchcore_10", "padim"])
def test_other_methods_predict(models: Models, name: str) -> None:
    model = (models.padim() if name == "padim" else models.patchcore(name)).eval()
    if name == "patchcore_10":
        assert model.model.memory_bank.shape == (128, 128 + 256)
    with torch.inference_mode():
        result = model(torch.rand(1, 3, 64, 64))
    assert result.anomaly_map.shape == (1, 1, 64, 64)
    assert result.pred_score.isfinite().all()


def test_files_are_exported_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def export(self: Any, export_root: Path, model_file_name: str, **arguments: Any) -> Path:
        asked.append({"name": model_file_name, **arguments})
        return save_tiny(export_root / "weights" / "openvino" / f"{model_file_name}.xml")

    for cls in (inference.UniAD, inference.Patchcore):
        monkeypatch.setattr(cls, "to_openvino", export)
    for name in ("f16", "int8_ptq", "patchcore_1", "any_size", "any_size_1024", "f32", "bf16", "f16"):
        assert models.openvino(name).is_file()
    assert [one["name"] for one in asked] == ["f16", "int8_ptq", "patchcore_1", "any_size", "f32"]
    assert [one.get("input_size") for one in asked] == [(64, 64)] * 3 + [None, (64, 64)]
    assert asked[0]["compression_type"].value == "fp16"
    datamodule = asked[1]["datamodule"]
    datamodule.setup()
    assert len(datamodule.train_data) == 3
    assert asked[2]["onnx_kwargs"] == {"dynamic_shapes": None}
    others = Models(models.folder.parent, inference.SMALL, training_images=21, calibration_images=3, seed=0)
    assert others.folder != models.folder


def test_checkpoint_and_config_belong_together(models: Models) -> None:
    checkpoint, config = models.checkpoint()
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["hidden_dim"] == 32
    assert "class_path: UniAD" in config.read_text()
    assert "hidden_dim: 32" in config.read_text()


def test_speed_of_torch(models: Models) -> None:
    row = inference.measure_torch(models, seconds=0)
    assert row["inferences"] == 5
    assert 0 < row["latency_ms_min"] <= row["latency_ms"]
    assert row["images_per_second"] > 0


@pytest.mark.slow
def test_benchmark_app(tmp_path: Path) -> None:
    file = save_tiny(tmp_path / "model.xml")
    row = inference.benchmark_app(file, (5 * SIZE, SIZE), True, "f32", 1)
    assert row["inferences"] > 5
    assert 0 < row["latency_ms_min"] <= row["latency_ms"]
    assert row["images_per_second"] > 0
    with pytest.raises(RuntimeError, match=r"(?s)benchmark_app failed on .*nothing\.xml"):
        inference.benchmark_app(tmp_path / "nothing.xml", (SIZE, SIZE), False, "f32", 1)


@pytest.mark.parametrize("shape", ["[1,3,?,?]", "[1,3,{0},{1}]", ""])
def test_single_images_in_turn(tmp_path: Path, shape: str) -> None:
    turn = inference.Turn(save_tiny(tmp_path / "model.xml"), inference.Case("any", shape=shape), (SIZE, SIZE))
    assert turn()["processor_ms"] > 0


def small_model() -> ov.Model:
    """Convolution, depthwise convolution, two matrix products and an attention."""
    images = ops.parameter([-1, 3, 8, 8], np.float32, name="input")
    full = ops.convolution(images, ops.constant(np.ones((4, 3, 3, 3), np.float32)), [2, 2], [1, 1], [1, 1], [1, 1])
    full.set_friendly_name("node_conv")
    weights = ops.constant(np.ones((4, 1, 1, 3, 3), np.float32))
    depthwise = ops.group_convolution(full, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    depthwise.set_friendly_name("node_depthwise/Part")
    tokens = ops.reshape(depthwise, ops.constant(np.array([0, 4, 16])), True)
    linear = ops.matmul(tokens, ops.constant(np.ones((16, 5), np.float32)), False, False)
    linear.set_friendly_name("node_linear")
    scores = ops.matmul(linear, linear, True, False)  # (1, 5, 5)
    scores.set_friendly_name("nameless")
    heads = ops.unsqueeze(scores, ops.constant(1))  # (1, 1, 5, 5)
    attention = ops.scaled_dot_product_attention(heads, heads, heads)
    attention.set_friendly_name("node_attention")
    return ov.Model([attention], [images])


PARTS = {"node_conv": "backbone", "node_depthwise": "neck", "node_linear": "encoder", "node_attention": "decoder"}


def test_operations_are_counted() -> None:
    model = small_model()
    model.reshape([1, 3, 8, 8])
    found = inference.count_operations(model, PARTS)
    assert found["backbone"] == 2 * (4 * 4 * 4) * (3 * 3 * 3)
    assert found["neck"] == 2 * (4 * 4 * 4) * (3 * 3)
    # A node without a part belongs to that of the node before it.
    assert found["encoder"] == 2 * (4 * 5) * 16 + 2 * (5 * 5) * 4
    assert found["decoder"] == 2 * 2 * 5 * 5 * 5
    assert found["head"] == 0


def test_time_is_told_by_part(tmp_path: Path) -> None:
    ov.save_model(small_model(), tmp_path / "model.xml", compress_to_fp16=False)
    seconds, _ = inference.profile(tmp_path / "model.xml", PARTS, [IMAGE, IMAGE], "f32")
    assert {part for part, _ in seconds} <= {"input", *PARTS.values()}
    assert ("backbone", "Convolution") in seconds
    assert all(0 < value < 1 for value in seconds.values())


def test_parts_are_told_by_the_names_of_modules(tmp_path: Path) -> None:
    nodes = []
    for name, module in (("a", "model.backbone.features.conv"), ("b", "model.transformer.decoder"), ("c", "elsewhere")):
        node = onnx.helper.make_node("Relu", ["x"], [f"{name}_out"], name=name)
        scopes = str(["", "model", *([module] if module != "elsewhere" else []), "relu"])
        node.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=scopes))
        nodes.append(node)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [])), tmp_path / "model.onnx")
    expected = {"a": "backbone", "a_out": "backbone", "b": "decoder", "b_out": "decoder"}
    assert inference.parts_of(tmp_path / "model.onnx") == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.onnx warns about itself
def test_every_part_of_uniad_is_found(models: Models) -> None:
    parts = inference.parts_of(models.onnx())
    assert set(parts.values()) == set(inference.PARTS)
    seconds, operations = inference.profile(models.onnx(), parts, [np.zeros((1, 3, 64, 64), np.float32)], "f32")
    assert operations["backbone"] > 0.9 * sum(operations.values())  # ResNet-18 beside two small layers
    tokens, width, channels = 16, 32, 64 + 64 + 128 + 256
    encoder = 2 * tokens * (channels * width + 4 * width * width + 2 * width * 64) + 4 * tokens * tokens * width
    assert operations["encoder"] == encoder
    assert {"backbone", "encoder", "decoder", "head"} <= {part for part, _ in seconds}


def test_floor() -> None:
    seconds = {("backbone", "Convolution"): 0.02, ("backbone", "Pooling"): 0.01, ("head", "Mul"): 0.01}
    operations = {"backbone": 3 * 10**9, "head": 0}
    rows = {row["part"]: row for row in inference.floor_rows("f32", seconds, operations, rate=1e11)}
    assert rows["backbone"]["ms"] == pytest.approx(30)
    assert rows["backbone"]["gflop_per_second"] == pytest.approx(100)
    assert rows["whole"]["ms"] == pytest.approx(40)
    assert rows["whole"]["floor_ms"] == pytest.approx(30)
    assert rows["neck"]["gflop_per_second"] is None
    assert inference.floor_rows("int8_ptq", seconds, operations, rate=None)[-1]["floor_ms"] is None


def test_everything_is_written_shown_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With measurements that cost nothing: OpenVINO takes a quarter of torch's time, PatchCore eight times."""
    measured: list[Any] = []

    def fake_speed(models: Models, name: str, seconds: int) -> dict[str, Any]:
        times = 8 if name == "patchcore_10" else 0.25
        measured.append(name)
        return {"latency_ms": 80 * times, "images_per_second": 10 / times, "bank_vectors": models.bank(name)}

    torch_row = {"latency_ms": 80, "images_per_second": 10}
    monkeypatch.setattr(Models, "openvino", lambda self, name: save_tiny(self.folder / f"{name}.xml"))
    monkeypatch.setattr(Models, "onnx", lambda self: Path("uniad.onnx"))
    monkeypatch.setattr(inference, "measure_torch", lambda *_: measured.append("torch") or torch_row)
    monkeypatch.setattr(inference, "measure_file", fake_speed)
    row = {"processor_ms": 30.0}
    monkeypatch.setattr(inference, "Turn", lambda file, case, size: lambda: row)
    monkeypatch.setattr(inference, "parts_of", lambda file: {})
    seconds = {("backbone", "Convolution"): 0.03, ("head", "Eltwise"): 0.01}
    monkeypatch.setattr(inference, "profile", lambda *_: (seconds, {"backbone": 2 * 10**9}))
    monkeypatch.setattr(inference, "matrix_rate", lambda *_: 1e11)
    monkeypatch.setattr(inference, "start", lambda *_: {"seconds": 2.0, "peak_memory_bytes": 3e8})
    folder = tmp_path / "quick"
    folder.mkdir()
    old = [{"device": harness.describe_device(CPU), "variant": "padim", "round": 9, "seed": 0}]
    pd.DataFrame([*old, {**old[0], "device": "another"}]).to_csv(folder / "inference_speed.csv", index=False)
    for _ in range(2):  # the second time in place of the first
        inference.inference(variants=("torch", "f32", "patchcore_10"), output_dir=tmp_path, quick=True)
    assert measured == 4 * ["torch", "f32", "patchcore_10"]
    other, speed = (rows for _, rows in pd.read_csv(folder / "inference_speed.csv").groupby("device", sort=False))
    assert other["round"].tolist() == [9]
    speed.to_csv(folder / "inference_speed.csv", index=False)
    assert speed["variant"].tolist() == measured[:6]
    assert speed["round"].tolist() == [1, 1, 1, 2, 2, 2]
    assert set(speed) >= {"command", "seed", "versions", "device", "backbone", "image_size"}
    assert speed["versions"].str.contains("openvino").all()
    texts = {}
    for name in ("speed", "precision", "floor", "start"):
        text = render(f"<!-- table: inference_{name} -->\n<!-- end -->", folder)
        texts[name] = [" ".join(line.split()) for line in text.splitlines()]
    assert "| UniAD, OpenVINO, f32 | 20 | 4 x | 40 | 4 x | 32 x |" in texts["speed"]
    assert "| f32 | 30.0 | 1 |" in texts["precision"]
    assert "| whole | 2.000 | 40.0 | 100% |" in texts["floor"]
    assert "| anomalib predict | 2 | 2 | 300 |" in texts["start"]
    assert pd.read_csv(folder / "inference_profile.csv")["share"].tolist() == pytest.approx([0.75, 0.25])
    assert (folder / "inference_profile.png").stat().st_size > 10_000


def test_processes_that_are_started(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(inference, "run", lambda command, folder: commands.append(command) or {})
    monkeypatch.setattr(Models, "openvino", lambda self, name: Path(f"{name}.xml"))
    monkeypatch.setattr(Models, "checkpoint", lambda self: (Path("uniad.ckpt"), Path("uniad.yaml")))
    for name in inference.STARTED:
        inference.start(models, name, 1)
    ours, without, inferencer, anomalib = commands
    assert Path(ours[0]).name == "anomalib-uniad"
    assert ours[1:3] == ["predict", "f32.xml"]
    assert len(list(Path(ours[3]).rglob("*.png"))) == 1
    assert without[-2:] == ["--heatmaps", "false"]
    assert inferencer[0] == sys.executable
    assert "--ckpt_path uniad.ckpt" in " ".join(anomalib)


@pytest.mark.skipif(not hasattr(__import__("os"), "wait4"), reason="needs wait4")
def test_memory_is_that_of_the_process_alone(tmp_path: Path) -> None:
    ballast = np.ones(300_000_000, np.uint8)  # in this process, not in the measured one
    large = inference.run([sys.executable, "-S", "-c", "b = b'x' * 100_000_000"], tmp_path)
    small = inference.run([sys.executable, "-S", "-c", "pass"], tmp_path)
    assert ballast[-1] == 1
    assert small["peak_memory_bytes"] < 60e6
    assert 90e6 < large["peak_memory_bytes"] - small["peak_memory_bytes"] < 130e6
    assert small["seconds"] > 0
    with pytest.raises(RuntimeError, match=r"(?s)failed: .*no such thing"):
        inference.run([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


@pytest.mark.parametrize("name", ["rounds", "seconds", "training_images", "calibration_images"])
def test_bad_arguments_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        inference.inference(**{name: 0})
