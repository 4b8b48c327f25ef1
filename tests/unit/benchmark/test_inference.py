# SPDX-License-Identifier: Apache-2.0
"""What `anomalib-uniad bench inference` measures, counts, writes and shows; never how fast it is."""

import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import openvino as ov
import pandas as pd
import pytest
import torch
from jsonargparse import auto_cli
from openvino import opset13 as ops

from anomalib_uniad.benchmark import report
from anomalib_uniad.benchmark.inference import command, figure, profile, session, speed, start, tables
from anomalib_uniad.benchmark.inference import files as files_module
from anomalib_uniad.benchmark.inference.files import SMALL, Files
from tiny_openvino import SIZE, save_tiny

IMAGE = np.full((1, 3, SIZE, SIZE), 0.5, np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    return Files(tmp_path_factory.mktemp("work"), SMALL, training_images=20, calibration_images=3, seed=0)


def test_uniad_decides_about_generated_images(files: Files) -> None:
    assert files.image_size == (64, 64)
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        said = files.uniad(torch.rand(4, 3, 64, 64, generator=draw))
    assert 0 < said.pred_label.sum() < 4
    assert (said.pred_score >= 0).all()
    assert (said.pred_score <= 1).all()


def test_banks_are_as_large_as_those_of_so_many_images(files: Files) -> None:
    assert files.bank("patchcore_10") == 20 * 8 * 8 // 10
    assert files.bank("patchcore_1") == 20 * 8 * 8 // 100
    assert files.bank("padim") is None
    paper = Files.__new__(Files)
    paper._training, paper._uniad = 648, type("", (), {"model": type("", (), {"image_size": (224, 224)})})()
    assert paper.bank("patchcore_10") == 50_803


@pytest.mark.parametrize("name", ["patchcore_10", "padim"])
def test_other_methods_predict(files: Files, name: str) -> None:
    model = (files._padim() if name == "padim" else files._patchcore(name)).eval()
    if name == "patchcore_10":
        assert model.model.memory_bank.shape == (128, 128 + 256)
    with torch.inference_mode():
        said = model(torch.rand(1, 3, 64, 64))
    assert said.anomaly_map.shape == (1, 1, 64, 64)
    assert said.pred_score.isfinite().all()


def test_files_are_exported_once(files: Files, monkeypatch) -> None:
    asked: list[dict[str, Any]] = []

    def export(self: Any, export_root: Path, model_file_name: str, **arguments: Any) -> Path:
        asked.append({"name": model_file_name, **arguments})
        return save_tiny(export_root / "weights" / "openvino" / f"{model_file_name}.xml")

    monkeypatch.setattr(Files, "onnx", Path("uniad.onnx"))
    for cls in (files_module.UniAD, files_module.Patchcore):
        monkeypatch.setattr(cls, "to_openvino", export)
    for name in ("f16", "int8_ptq", "patchcore_1", "f16"):
        assert files.openvino(name).is_file()
    assert [one["name"] for one in asked] == ["f16", "int8_ptq", "patchcore_1"]
    assert all(one["input_size"] == (64, 64) for one in asked)
    assert asked[0]["compression_type"].value == "fp16"
    assert files.uniad.to_onnx("anywhere", "f16") == Path("uniad.onnx")  # for to_openvino
    del files.uniad.to_onnx
    datamodule = asked[1]["datamodule"]
    datamodule.setup()
    assert len(datamodule.train_data) == 3
    assert asked[2]["onnx_kwargs"] == {"dynamic_shapes": None}


def test_the_default_export_is_one_file_for_all_sizes(files: Files, monkeypatch) -> None:
    asked: list[dict[str, Any]] = []

    def export(self: Any, export_root: Path, model_file_name: str, **arguments: Any) -> Path:
        asked.append({"to_onnx": self.to_onnx, **arguments})
        return save_tiny(export_root / "weights" / "openvino" / f"{model_file_name}.xml")

    monkeypatch.setattr(files_module.UniAD, "to_openvino", export)
    files.uniad.__dict__["to_onnx"] = None  # as after an export of fixed size
    assert files.openvino("any_size") == files.openvino("any_size_1024")
    assert len(asked) == 1
    assert set(asked[0]) == {"to_onnx"}  # no size
    assert asked[0]["to_onnx"] is not None
    assert [files.size_of_images(name) for name in ("f32", "any_size", "any_size_1024")] == [
        (64, 64),
        (64, 64),
        (1024, 1024),
    ]


def test_a_file_for_any_size_is_measured(tmp_path: Path) -> None:
    model = speed.Exported(save_tiny(tmp_path / "model.xml"), threads=1)
    for size in (SIZE, 5 * SIZE):
        assert speed.measure(model, [np.zeros((1, 3, size, size), np.float32)], seconds=0.001)["inferences"] >= 5


def test_files_of_other_arguments_are_refused(tmp_path: Path) -> None:
    Files(tmp_path, SMALL, 20, 3, 0)
    Files(tmp_path, SMALL, 20, 3, 0)
    with pytest.raises(ValueError, match=r"files made with other arguments .* give another work_dir"):
        Files(tmp_path, SMALL, 21, 3, 0)


def test_checkpoint_and_config_belong_together(files: Files) -> None:
    checkpoint, config = files.checkpoint()
    content = torch.load(checkpoint, weights_only=True)
    assert content["hyper_parameters"]["hidden_dim"] == 32
    assert "class_path: UniAD" in config.read_text()
    assert "hidden_dim: 32" in config.read_text()


def test_an_exported_file_is_measured(tmp_path: Path) -> None:
    model = speed.Exported(save_tiny(tmp_path / "model.xml", size=SIZE), threads=1)
    row = speed.measure(model, [IMAGE], seconds=0.001)
    assert row["inferences"] >= 5
    assert 0 < row["latency_ms_min"] <= row["latency_ms"]
    assert row["images_per_second"] > 0


def test_eager_torch_is_measured() -> None:
    seen: list[torch.Tensor] = []
    row = speed.measure(speed.Eager(seen.append), [IMAGE, 2 * IMAGE], seconds=0.001)
    assert len(seen) >= row["inferences"] + 5
    assert torch.equal(seen[0], torch.from_numpy(IMAGE))
    assert seen[2].mean() == 1


def _model() -> ov.Model:
    """Convolution, depthwise convolution and two matrix products, one part each."""
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
    return ov.Model([ops.softmax(scores, axis=-1)], [images])


PARTS = {"node_conv": "backbone", "node_depthwise": "neck", "node_linear": "encoder"}


def test_operations_are_counted() -> None:
    found = profile.operations(speed.one_image(_model()), PARTS)
    assert found["backbone"] == 2 * (4 * 4 * 4) * (3 * 3 * 3)
    assert found["neck"] == 2 * (4 * 4 * 4) * (3 * 3)
    # A node without a part belongs to that of the node before it.
    assert found["encoder"] == 2 * (4 * 5) * 16 + 2 * (5 * 5) * 4
    assert found["decoder"] == found["head"] == 0


def test_time_is_told_by_part(tmp_path: Path) -> None:
    ov.save_model(_model(), tmp_path / "model.xml", compress_to_fp16=False)
    found = profile.profile(tmp_path / "model.xml", PARTS, [IMAGE, IMAGE], threads=1)
    assert {part for part, _ in found.seconds} <= {"input", "backbone", "neck", "encoder"}
    assert ("backbone", "Convolution") in found.seconds
    assert all(0 < value < 1 for value in found.seconds.values())


def test_parts_are_told_by_the_names_of_modules(tmp_path: Path) -> None:
    nodes = []
    for name, module in (("a", "model.backbone.features.conv"), ("b", "model.transformer.decoder"), ("c", "elsewhere")):
        node = onnx.helper.make_node("Relu", ["x"], [f"{name}_out"], name=name)
        scopes = str(["", "model", *([module] if module != "elsewhere" else []), "relu"])
        node.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=scopes))
        nodes.append(node)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [])), tmp_path / "model.onnx")
    assert profile.parts_of(tmp_path / "model.onnx") == {
        "a": "backbone",
        "a_out": "backbone",
        "b": "decoder",
        "b_out": "decoder",
    }


@pytest.mark.filterwarnings("ignore")  # torch.onnx warns about itself
def test_every_part_of_uniad_is_found(files: Files) -> None:
    parts = profile.parts_of(files.onnx)
    assert set(parts.values()) == set(profile.PARTS)
    found = profile.profile(files.onnx, parts, [np.zeros((1, 3, 64, 64), np.float32)], threads=1)
    total = sum(found.operations.values())
    assert found.operations["backbone"] > 0.9 * total  # ResNet-18 beside two small layers
    tokens, width, channels = 16, 32, 64 + 64 + 128 + 256
    encoder = 2 * tokens * (channels * width + 4 * width * width + 2 * width * 64) + 4 * tokens * tokens * width
    assert found.operations["encoder"] == encoder
    assert {"backbone", "encoder", "decoder", "head"} <= {part for part, _ in found.seconds}


def test_floor() -> None:
    found = profile.Profile({("backbone", "Convolution"): 0.02, ("backbone", "Pooling"): 0.01, ("head", "Mul"): 0.01})
    found.operations = {"backbone": 3 * 10**9, "head": 0}
    rows = {row["part"]: row for row in session.floor_rows("f32", found, rate=1e11)}
    assert rows["backbone"]["ms"] == pytest.approx(30)
    assert rows["backbone"]["gflop_per_second"] == pytest.approx(100)
    assert rows["whole"]["ms"] == pytest.approx(40)
    assert rows["whole"]["floor_ms"] == pytest.approx(30)
    assert rows["neck"]["gflop_per_second"] is None
    assert session.floor_rows("int8_ptq", found, rate=None)[-1]["floor_ms"] is None


class _Bench:
    """A benchmark whose measurements cost nothing: OpenVINO takes a quarter of torch's time."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.folder, self.measured, self.stop_at = folder, [], 10**6
        self.sizes: dict[str, tuple[int, int]] = {}
        monkeypatch.setattr(session, "supports_bf16", lambda: False)
        monkeypatch.setattr(Files, "openvino", lambda self, name: save_tiny(self._folder / f"{name}.xml"))
        monkeypatch.setattr(session, "Exported", lambda file, precision, threads: file.stem)
        monkeypatch.setattr(session, "Eager", lambda model: "torch")
        monkeypatch.setattr(session, "measure", self._measure)

    def _measure(self, model: str, images: Any, seconds: float) -> dict[str, Any]:
        if len(self.measured) == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(model)
        self.sizes[model] = images[0].shape[2:]
        times = 1 if model == "torch" else 8 if model == "patchcore_10" else 0.25
        return {"latency_ms": 80 * times, "latency_ms_min": 70, "images_per_second": 10 / times, "inferences": 5}

    def run(self, variants: Any = ("torch", "f32", "bf16", "patchcore_10"), resume: bool = False) -> pd.DataFrame:
        bench = session.Session(self.folder, None, 0, 20, 3, resume, 0, quick=True)
        bench.run(["speed"], variants, 2, 0.01)
        return pd.read_csv(self.folder / "inference_speed.csv")


def test_variants_are_measured_in_turn_and_shown(tmp_path: Path, monkeypatch) -> None:
    bench = _Bench(tmp_path, monkeypatch)
    frame = bench.run()
    assert bench.measured == 2 * ["torch", "f32", "patchcore_10"]  # no bf16 on such a processor
    assert frame["variant"].tolist() == bench.measured
    assert frame["round"].tolist() == [1, 1, 1, 2, 2, 2]
    assert frame["bank_vectors"].dropna().tolist() == [128, 128]
    assert set(frame) >= {"command", "seed", "versions", "device", "backbone", "image_size", "size_bytes"}
    assert frame["versions"].str.contains("openvino").all()
    assert len(bench.run()) == 6  # replaced
    text = report.render("<!-- table: inference_speed -->\n<!-- end -->", tmp_path)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| UniAD, OpenVINO, f32 | 20 | 4 x | 40 | 4 x | 32 x |" in lines
    assert "Vectors in PatchCore's memory bank: 10 %: 128." in text


def test_large_images_are_not_compared_with_small_ones(tmp_path: Path, monkeypatch) -> None:
    bench = _Bench(tmp_path, monkeypatch)
    bench.run(variants=("f32", "any_size", "any_size_1024"))
    assert bench.sizes == {"torch": (64, 64), "f32": (64, 64), "any_size": (64, 64), "any_size_1024": (1024, 1024)}
    text = report.render("<!-- table: inference_speed -->\n<!-- end -->", tmp_path)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| UniAD, OpenVINO, f32, file for any size | 20 | 4 x | 40 | 4 x |" in lines
    assert "| UniAD, OpenVINO, f32, file for any size, 1024 px | 20 | | 40 | |" in lines
    assert "images of 64 px where no other size is given in memory" in text


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch) -> None:
    bench = _Bench(tmp_path, monkeypatch)
    bench.stop_at = 4
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    bench.stop_at = 10**6
    bench.measured.clear()
    frame = bench.run(resume=True)
    assert bench.measured == ["f32", "patchcore_10"]
    assert len(frame) == 6
    bench.measured.clear()
    assert len(bench.run(variants=("torch",))) == 2  # without resume, rows of this device are replaced
    assert bench.measured == ["torch", "torch"]


def test_profile_is_written_shown_and_drawn(tmp_path: Path, monkeypatch) -> None:
    _Bench(tmp_path, monkeypatch)
    calls: list[str] = []

    def fake(file: Path, parts: Any, images: Any, precision: str, threads: int) -> profile.Profile:
        calls.append(file.stem)
        seconds = {("backbone", "Convolution"): 0.03, ("head", "Eltwise"): 0.01}
        return profile.Profile(seconds, {"backbone": 2 * 10**9})

    monkeypatch.setattr(profile, "profile", fake)
    monkeypatch.setattr(profile, "parts_of", lambda file: {})
    monkeypatch.setattr(Files, "onnx", Path("uniad.onnx"))
    monkeypatch.setattr(session, "matrix_rate", lambda device, dtype: 1e11)
    for resume in (False, True):
        session.Session(tmp_path, None, 0, 20, 3, resume, 0, quick=True).run(
            ["profile"], ("f32", "f16", "bf16", "int8_ptq"), 1, 0.1
        )
    assert calls == ["f32", "int8_ptq"]
    layers = pd.read_csv(tmp_path / "inference_profile.csv")
    assert layers["share"].tolist() == pytest.approx(2 * [0.75, 0.25])
    text = report.render("<!-- table: inference_floor -->\n<!-- end -->", tmp_path)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| whole | 2.000 | 40.0 | 100% | 40.0 | 100% |" in lines
    assert "Floor, all operations at the measured rate: in f32 20.0 ms, at 100 GFLOP/s" in text
    assert (tmp_path / "inference_profile.png").stat().st_size > 10_000
    figure.draw(layers, pd.read_csv(tmp_path / "inference_floor.csv"), tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").is_file()


def test_processes_are_measured(tmp_path: Path, monkeypatch) -> None:
    _Bench(tmp_path, monkeypatch)
    commands: list[list[str]] = []

    def run(arguments: list[str], folder: Path) -> dict[str, Any]:
        commands.append(arguments)
        return {"seconds": 2.0, "peak_memory_bytes": 3e8}

    monkeypatch.setattr(start, "run", run)
    monkeypatch.setattr(Files, "checkpoint", lambda self: (Path("uniad.ckpt"), Path("uniad.yaml")))
    session.Session(tmp_path, None, 0, 20, 3, False, 0, quick=True).run(["start"], ("torch",), 1, 0.1)
    frame = pd.read_csv(tmp_path / "inference_start.csv")
    assert frame["method"].tolist() == 2 * list(start.METHODS)
    assert frame["images"].tolist() == 4 * [1] + 4 * [2]
    ours, without, inferencer, anomalib = commands[:4]
    assert Path(ours[0]).name == "anomalib-uniad"
    assert without[-2:] == ["--heatmaps", "false"]
    assert inferencer[0] == sys.executable
    assert "--ckpt_path uniad.ckpt" in " ".join(anomalib)
    text = report.render("<!-- table: inference_start -->\n<!-- end -->", tmp_path)
    assert "| anomalib predict |" in " ".join(text.split())


@pytest.mark.skipif(not hasattr(__import__("os"), "wait4"), reason="needs wait4")
def test_memory_is_that_of_the_process_alone(tmp_path: Path) -> None:
    ballast = np.ones(300_000_000, np.uint8)  # in this process, not in the measured one
    large = start.run([sys.executable, "-S", "-c", "b = b'x' * 100_000_000"], tmp_path)
    small = start.run([sys.executable, "-S", "-c", "pass"], tmp_path)
    assert ballast[-1] == 1
    assert small["peak_memory_bytes"] < 60e6
    assert 90e6 < large["peak_memory_bytes"] - small["peak_memory_bytes"] < 130e6
    assert small["seconds"] > 0
    with pytest.raises(RuntimeError, match=r"(?s)failed: .*no such thing"):
        start.run([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


def test_several_devices_have_their_own_tables() -> None:
    row = {"variant": "torch", "round": 1, "latency_ms": 100.0, "images_per_second": 10.0, "bank_vectors": np.nan}
    row |= {"backbone": "b", "image_size": 224}
    text = tables.speed(pd.DataFrame([{**row, "device": "one"}, {**row, "device": "two"}]))
    assert text.startswith("On one:")
    assert "On two:" in text
    assert "memory bank" not in text


def test_the_command(tmp_path: Path, monkeypatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(session.Session, "run", lambda self, *arguments: calls.append((self._output, arguments)))
    auto_cli(command.inference, args=["--quick", "true", "--parts", "[start,speed]", "--output_dir", str(tmp_path)])
    assert calls == [(tmp_path / "quick", (["speed", "start"], list(get_args(command.Variant)), 2, 0.05))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"training_images": 0}, "training_images must be at least 1"),
        ({"calibration_images": 0}, "calibration_images must be at least 1"),
        ({"threads": -1}, "threads must be at least 0, got -1"),
        ({"seconds": 0.0}, r"seconds must be positive, got 0\.0"),
        ({"parts": ("gpu",)}, "parts must be among speed, profile, start, got 'gpu'"),
        ({"variants": ("f8",)}, "variants must be among torch, .*, got 'f8'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command.inference(**arguments)
