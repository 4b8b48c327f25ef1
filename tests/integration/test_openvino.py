# SPDX-License-Identifier: Apache-2.0
"""Exported files compute what torch computes, and know what they are: precisions, shapes, names, metadata."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pandas as pd
import pytest
import torch
from anomalib.engine import Engine
from anomalib.metrics import AUROC
from anomalib.models.components.base.export_mixin import ExportMixin
from PIL import Image
from torch import nn

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.inference.metadata import ModelMetadata
from anomalib_uniad.model.components.attention import neighbor_mask
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx, openvino and nncf warn about themselves

PORTS = Path(__file__).parents[2] / "results" / "ports.csv"
DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
TINY: dict[str, Any] = {**SMALL, "layers": (0, 1)}  # strides 2 and 4: exports take seconds


def compiled(path: Path) -> ov.CompiledModel:
    # The hint matters on processors with bfloat16, where openvino would use that.
    return ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def attentions(model: ov.Model) -> list[ov.Node]:
    return [op for op in model.get_ordered_ops() if op.get_type_name() == "ScaledDotProductAttention"]


def visible_keys(attention: ov.Node) -> np.ndarray:
    """The constant mask of an attention (N, N), True where a query sees a key."""
    mask = attention.input_value(3).get_node()
    assert mask.get_type_name() == "Constant"
    values = mask.get_data().reshape(mask.get_data().shape[-2:])
    assert set(np.unique(values)) <= {0, -np.inf}
    return values == 0


def check_masks(path: Path, grid: tuple[int, int], neighbor_size: int) -> None:
    found = attentions(ov.Core().read_model(path))
    assert len(found) == 3  # encoder, decoder to encoder, decoder to the previous layer
    for attention in found:
        assert (visible_keys(attention) == neighbor_mask(grid, (neighbor_size, neighbor_size)).numpy()).all()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "mode"), [(256, "zeros"), (448, "reflect")])
def test_map_of_torch(tmp_path: Path, size: int, mode: str) -> None:
    arguments = {**TINY, "image_size": size, "neighbor_size": 7, "backbone_padding_mode": mode}
    model = UniAD(**arguments, seed=0, post_processor=False).eval()
    path = model.to_openvino(tmp_path)
    check_masks(path, (size // 16, size // 16), 7)
    runs = compiled(path)
    for batch in (1, 8):
        images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(images)
        outputs = runs(images.numpy())
        span = np.ptp(expected.anomaly_map.numpy())
        assert np.abs(outputs["anomaly_map"] - expected.anomaly_map.numpy()).max() < 1e-4 * span
        assert np.abs(outputs["pred_score"] - expected.pred_score.numpy()).max() < 1e-4 * span


@pytest.mark.slow
@pytest.mark.parametrize(("size", "image_score"), [(None, "top"), ((64, 64), "max")])
def test_a_score_that_is_not_a_number_is_never_normal(
    tmp_path: Path, size: tuple[int, int] | None, image_score: Any, monkeypatch
) -> None:
    """OpenVINO cuts NaN to 0, below every threshold."""
    monkeypatch.setattr("anomalib_uniad.model.lightning_model.check_weights", lambda model: None)
    model = UniAD(**TINY, seed=0, image_score=image_score).eval()
    next(model.model.transformer.parameters()).data[0, 0] = np.nan
    for level in ("image", "pixel"):
        for name, number in ((f"_{level}_threshold", 0.5), (f"{level}_min", 0), (f"{level}_max", 1)):
            getattr(model.post_processor, name).fill_(number)
    outputs = compiled(model.to_openvino(tmp_path, input_size=size))(np.zeros((1, 3, 64, 64), np.float32))
    assert np.isnan(outputs["pred_score"]).all()
    assert outputs["pred_label"].all()


class Decoder(nn.Module):
    """The part of the transformer that makes the reconstruction of tokens, as they come from the encoder."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, memory: torch.Tensor) -> torch.Tensor:
        return self.transformer.decoder(memory, self.transformer.position())


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_a_token_does_not_see_itself_or_its_neighbors(tmp_path: Path, masked: bool) -> None:
    """With other values in a token, the first attention changes for all that may see it, and for them only."""
    model = UniAD(**{**TINY, "image_size": 96, "neighbor_mask": masked}, seed=0).eval()
    decoder, token = Decoder(model.model.transformer), 14
    tokens = torch.randn(1, 36, 16, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "decoder.onnx"
    torch.onnx.export(decoder, (tokens,), str(file), dynamo=True, opset_version=18)
    converted = ov.convert_model(file)
    converted.add_outputs(attentions(converted)[0].output(0))
    run = ov.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    other = tokens.clone()
    other[:, token] += 1
    before, after = (run(x.numpy()) for x in (tokens, other))
    with torch.no_grad():
        np.testing.assert_allclose(before[0], decoder(tokens).numpy(), atol=1e-4)
    changed = np.abs(after[1] - before[1]).max(axis=(0, 1, 3)) > 0  # (B, heads, N, d) -> of each query
    if masked:
        assert (changed == neighbor_mask((6, 6), (3, 3))[:, token].numpy()).all()
        assert not changed[token]
    else:
        assert changed.all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, MultiCategory]:
    """A checkpoint, and the images of two sizes that it was trained on.

    All images have nearly the same score, so the range that is normalised is set to one that starts at zero.
    """
    root = make_mvtec_like(tmp_path_factory.mktemp("data") / "Products", sizes={"bottle": (72, 90), "cable": (64, 64)})
    data = MultiCategory("MVTecAD", root, train_batch_size=2, eval_batch_size=2, num_workers=0)
    runner = quiet_engine(tmp_path_factory.mktemp("train"), max_epochs=2)
    runner.fit(UniAD(**TINY, seed=5), datamodule=data)
    checkpoint = torch.load(runner.best_model_path, weights_only=True)
    for level in ("image", "pixel"):
        checkpoint["state_dict"][f"post_processor.{level}_min"] *= 0
    torch.save(checkpoint, runner.best_model_path)
    return Path(runner.best_model_path), MultiCategory("MVTecAD", root, num_workers=0)


def export(trained: tuple[Path, MultiCategory], folder: Path, kind: str = "openvino", **arguments: Any) -> Path:
    runner = Engine(default_root_dir=folder, logger=False)
    return runner.export(UniAD(**TINY), kind, export_root=folder, ckpt_path=trained[0], **arguments)


@pytest.fixture(scope="module")
def onnx(trained, tmp_path_factory) -> Path:
    return export(trained, tmp_path_factory.mktemp("onnx"), "onnx")


@pytest.fixture
def exported_once(onnx: Path) -> Iterator[None]:
    with given(onnx):
        yield


@contextmanager
def given(onnx: Path) -> Iterator[None]:
    """Torch's part of an export, which takes seconds, is that of the ONNX file; all that follows is done."""

    def copy(self: Any, export_root: str, model_file_name: str, input_size: None, **arguments: Any) -> Path:
        assert (model_file_name, input_size, arguments) == (onnx.stem, None, {"opset_version": 18})
        shutil.copytree(onnx.parent, export_root, dirs_exist_ok=True)
        return Path(export_root, onnx.name)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ExportMixin, "to_onnx", copy)
        yield


@pytest.fixture(scope="module")
def exported(trained, onnx: Path, tmp_path_factory) -> Path:
    with given(onnx):
        return export(trained, tmp_path_factory.mktemp("exported"))


def check_metadata(metadata: ModelMetadata, checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    assert metadata.model == "UniAD"
    assert metadata.version == version("anomalib-uniad")
    assert metadata.image_size == (64, 64)
    assert metadata.categories == ("bottle", "cable")
    assert metadata.category_thresholds == saved["category_thresholds"]
    assert set(metadata.category_thresholds["cable"]) == {"image", "pixel"}
    state = {name: float(v) for name, v in saved["state_dict"].items() if name.startswith("post_processor")}
    assert metadata.thresholds == {x: state[f"post_processor._{x}_threshold"] for x in ("image", "pixel")}
    assert metadata.normalization == {
        name: state[f"post_processor.{name}"] for name in ("image_min", "image_max", "pixel_min", "pixel_max")
    }
    assert metadata.training == {"dataset": "Products", "images": 8, "epochs": 2, "seed": 5}


def test_metadata_of_openvino(trained, exported: Path) -> None:
    metadata = ModelMetadata.read(ov.Core().read_model(exported), exported)
    assert metadata.precision == "FP32"
    check_metadata(metadata, trained[0])


def test_masks_are_in_the_file(exported: Path) -> None:
    check_masks(exported, (4, 4), 3)


def test_metadata_of_onnx(trained, onnx: Path) -> None:
    check_metadata(ModelMetadata.read(ov.Core().read_model(onnx), onnx), trained[0])


def test_metadata_of_torch(trained, tmp_path: Path) -> None:
    path = export(trained, tmp_path, "torch")
    check_metadata(torch.load(path, weights_only=False)["model"].metadata, trained[0])


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_weights_in_int8(trained, tmp_path: Path) -> None:
    path = export(trained, tmp_path, compression_type="int8")
    metadata = ModelMetadata.read(ov.Core().read_model(path), path)
    assert metadata.precision == "INT8"
    check_metadata(metadata, trained[0])


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("compression", ["int8_ptq", "int8_acq"])
def test_int8(trained, tmp_path: Path, compression: str) -> None:
    path = export(
        trained,
        tmp_path,
        compression_type=compression,
        datamodule=trained[1],
        metric=AUROC(fields=["pred_score", "gt_label"]) if compression == "int8_acq" else None,
        **({"max_drop": 1.0} if compression == "int8_acq" else {}),
    )
    model = ov.Core().read_model(path)
    metadata = ModelMetadata.read(model, path)
    assert metadata.precision == compression.upper()
    check_metadata(metadata, trained[0])
    quantised = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    targets = {x.get_node().get_type_name() for op in quantised for x in op.output(0).get_target_inputs()}
    assert {"Convolution", "MatMul"} <= targets
    assert not targets & {"ReduceL2", "Subtract", "AvgPool", "ReduceMax", "Interpolate"}
    # The resize of the image is made of matrix products, and stays exact.
    first = next(op for op in model.get_ordered_ops() if op.get_type_name() == "Convolution")
    assert first.input_value(0).get_node().get_type_name() == "FakeQuantize"
    exact = UniAD.load_from_checkpoint(trained[0]).eval()
    outputs = compiled(path)
    for index in range(0, 12, 5):
        image = trained[1].val_data[index].image[None]
        with torch.no_grad():
            expected = exact(image)
        assert outputs(image.numpy())["pred_score"][0] == pytest.approx(expected.pred_score.item(), abs=0.03)
        assert np.abs(outputs(image.numpy())["anomaly_map"] - expected.anomaly_map.numpy()).max() < 0.1


@pytest.mark.slow
def test_fixed_input_and_batch(trained, tmp_path: Path) -> None:
    """Images of the file's own size are resized inside; without dynamic shapes, the batch is fixed, too."""
    path = export(trained, tmp_path, input_size=(72, 90), onnx_kwargs={"dynamic_shapes": None})
    model = ov.Core().read_model(path)
    assert model.input().partial_shape == ov.PartialShape([1, 3, 72, 90])
    assert not [op for op in model.get_ops() if op.get_type_name() == "ShapeOf"]
    images = torch.rand(1, 3, 72, 90, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = UniAD.load_from_checkpoint(trained[0]).eval()(images).anomaly_map.numpy()
    np.testing.assert_allclose(compiled(path)(images.numpy())["anomaly_map"], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"dynamic_shapes": None}, [1, 3, 64, 96]),
        ({"dynamic_axes": {"input": {0: "batch", 3: "width"}}}, [-1, 3, 64, -1]),
    ],
)
def test_without_input_size_sides_that_are_fixed_are_the_models(tmp_path: Path, arguments: Any, shape: Any) -> None:
    """anomalib would take the 32 x 32 pixels with which it probes models."""
    model = UniAD(**{**TINY, "image_size": (64, 96)}, seed=0).eval()
    path = model.to_openvino(tmp_path, onnx_kwargs=arguments)
    assert ov.Core().read_model(path).input().partial_shape == ov.PartialShape(shape)


@pytest.mark.slow
@pytest.mark.usefixtures("exported_once")
def test_ports(trained, tmp_path: Path) -> None:
    """Names, types and shapes for servers are those that the docs tell."""
    path = export(trained, tmp_path, compression_type="fp16")
    model = ov.Core().read_model(path)
    metadata = ModelMetadata.read(model, path)
    assert metadata.precision == "FP16"
    check_metadata(metadata, trained[0])
    rows = [
        {"kind": kind, "name": port.any_name, "type": port.element_type.get_type_name(), "shape": shape(port)}
        for kind, ports in (("input", model.inputs), ("output", model.outputs))
        for port in ports
    ]
    assert rows == pd.read_csv(PORTS)[["kind", "name", "type", "shape"]].to_dict("records")


def test_snippets_of_the_docs(trained, exported: Path, monkeypatch, capsys) -> None:
    """As they stand there, with the exported file and an image beside them."""
    shutil.copy(next(trained[1].root.rglob("*.png")), exported.parent / "new.png")
    monkeypatch.chdir(exported.parent)
    blocks = re.findall(r"```python\n(.*?)```", DEPLOYMENT.read_text(encoding="utf-8"), re.DOTALL)
    snippets = [block for block in blocks if '"model.xml"' in block]
    assert len(snippets) == 3
    for snippet in snippets:
        exec(snippet, {"frame": np.asarray(Image.open("new.png").convert("RGB"))})
    described, scored = capsys.readouterr().out.splitlines()[-2:]
    assert re.fullmatch(r"[01](\.\d+)? (True|False) \(1, 1, 64, 64\)", scored)
    assert described.startswith("('bottle', 'cable') {'image': ")


def shape(port: Any) -> str:
    """Shape in words: the model's own size is 64."""
    names = {0: "batch"} if port.any_name != "input" else {0: "batch", 2: "height", 3: "width"}
    size = {64: "image_size"}
    sides = [
        names[axis] if side.is_dynamic else size.get(side.get_length(), str(side.get_length()))
        for axis, side in enumerate(port.partial_shape)
    ]
    return ", ".join(sides)
