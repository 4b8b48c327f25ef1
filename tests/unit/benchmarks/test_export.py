# SPDX-License-Identifier: Apache-2.0
"""Exported maps are compared with those of torch, with and without the mask; so is the whole path of a backbone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from openvino import opset13 as ops

import export
from anomalib_uniad import UniAD
from render_tables import RESULTS, TABLES
from small import SMALL

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves


@pytest.mark.slow
def test_mask_and_batches() -> None:
    model = UniAD(**{**SMALL, "layers": (0, 1)}, seed=0, evaluator=False, post_processor=False).eval()
    masks = [module.visible for module in model.modules() if hasattr(module, "visible")]
    rows = pd.DataFrame(export.compare(model, batches=(1, 3)))
    assert list(rows["batch"]) == [1, 3]
    assert (rows[["map", "score"]] < 1e-4).all(axis=None)
    assert (rows["masked"] == 3).all()
    assert (rows["without_mask"] > 0.01).all()
    after = [module.visible for module in model.modules() if hasattr(module, "visible")]
    assert all(mask is kept for mask, kept in zip(masks, after, strict=True))  # the model is as it was


def test_a_mask_that_hides_nothing_is_none() -> None:
    heads = ops.parameter([1, 1, 2, 4], np.float32)
    found = []
    for mask in (None, np.zeros((2, 2)), np.array([[0.0, -np.inf], [0.0, 0.0]])):
        extra = [] if mask is None else [ops.constant(mask.astype(np.float32))]
        found.append(export.has_mask(ops.scaled_dot_product_attention(heads, heads, heads, *extra)))
    assert found == [False, False, True]


def test_a_backbone_is_trained_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "compare", lambda model, batches: [{"map": float(model.training)}])
    row = export.check_backbone("resnet18", [1, 2], [64, 96], 16, "reflect")
    assert row["tokens"] == 24
    assert row["channels"] == 192
    assert row["loss_after_step"] < row["loss"]
    assert row["openvino_difference"] == 0.0


def test_each_backbone_is_taken_through_sizes_and_paddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(name: str, layers: list[int], size: list[int], stride: int, mode: str) -> dict:
        return {"backbone": name, "layers": layers, "height": size[0], "width": size[1], "padding_mode": mode}

    monkeypatch.setattr(export, "check_backbone", check)
    for _ in range(2):  # the second time in place of the first
        export.backbones(["resnet18", "vit_small_patch14_dinov2"], [[64, 64], [64, 96]], tmp_path)
    rows = pd.read_csv(tmp_path / "backbones.csv")
    assert rows[["backbone", "height", "width", "padding_mode"]].to_numpy().tolist() == [
        ["resnet18", 64, 64, "zeros"],
        ["resnet18", 64, 96, "zeros"],
        ["resnet18", 64, 96, "reflect"],
        ["vit_small_patch14_dinov2", 70, 70, "zeros"],
        ["vit_small_patch14_dinov2", 70, 98, "zeros"],
    ]
    assert {"seed", "epochs", "versions", "command"} <= set(rows)


def test_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"batch": 1, "map": 1e-6, "score": 2e-6, "masked": 12, "without_mask": 0.02}
    models = []
    monkeypatch.setattr(export, "compare", lambda model, batches: models.append(model) or [found])
    export.parity("resnet18", image_sizes=(224,), output_dir=tmp_path)
    small = {**SMALL, "layers": [0, 1], "feature_norm": "standard"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({"init_args": small}))
    export.parity(image_sizes=(64,), padding_modes=("zeros",), recipe=tmp_path / "small.yaml", output_dir=tmp_path)
    assert models[-1].model.feature_norm.images == 8
    rows = pd.read_csv(tmp_path / "export_parity.csv")
    assert rows["padding"].tolist() == ["zeros", "reflect", "zeros"]
    shown = [line.split("|")[1].strip() for line in TABLES["export_parity"](tmp_path).splitlines()[4:]]
    assert shown == ["uniad.yaml, resnet18"] * 2 + [f"small.yaml, {SMALL['backbone']}"]


def test_ports_are_shown() -> None:
    text = TABLES["ports"](RESULTS)
    assert all(f"`{name}`" in text for name in pd.read_csv(RESULTS / "ports.csv")["name"])
