# SPDX-License-Identifier: Apache-2.0
"""What the choices behind INT8 do is measured, each alone."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pandas as pd
import pytest
from anomalib.deploy import CompressionType

import quantization
from anomalib_uniad import UniAD
from anomalib_uniad.deploy.quantization import (
    DEPTHWISE,
    ERROR,
    MAPS,
    OVERFLOW,
    PIXELS,
    RANGES,
    RECTANGLES,
    TRANSFORMER,
    quantize,
)
from anomalib_uniad.import_checkpoint import save_checkpoint
from anomalib_uniad.parity.inputs import make_datamodule
from anomalib_uniad.parity.models import size_on_disk
from helpers import make_mvtec_like
from quantization import ALL, ANOMALIB, variants
from small import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of others about themselves


class Files:
    """A checkpoint with depthwise convolutions, images, and the model quantised, each variant once."""

    def __init__(self, folder: Path) -> None:
        self.data = make_mvtec_like(folder / "Products", sizes=(64, 64), train=3, good=2, bad=2)
        self.model = UniAD(**{**SMALL, "backbone": "mobilenetv2_035", "layers": (0, 1)}, seed=0).eval()
        for level in ("image", "pixel"):
            getattr(self.model.post_processor, f"{level}_min").fill_(0.0)
            getattr(self.model.post_processor, f"{level}_max").fill_(100.0)
            getattr(self.model.post_processor, f"_{level}_threshold").fill_(50.0)
        self.checkpoint = folder / "model.ckpt"
        save_checkpoint(self.model, self.checkpoint)
        self.folder, self.datamodule = folder, make_datamodule("MultiCategory", self.data)
        self.exported = self.model.to_openvino(folder, "f32")
        self.quantised = cache(self._quantise)

    def _quantise(self, variant: str) -> ov.Model:
        return variants()[variant](ov.Core().read_model(self.exported), self.datamodule, (64, 64))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


def quantised(model: ov.Model) -> list[ov.Node]:
    return [op for op in model.get_ordered_ops() if op.get_type_name() == "FakeQuantize"]


def consumers(model: ov.Model) -> Counter[str]:
    """Types of operations that take quantised values."""
    found = (port.get_node() for op in quantised(model) for port in op.output(0).get_target_inputs())
    return Counter(op.get_type_name() for op in found)


def ranges(model: ov.Model) -> dict[str, float]:
    """Largest value that is not cut off, of each quantised tensor."""
    return {op.get_friendly_name(): float(np.max(op.input_value(2).get_node().get_data())) for op in quantised(model)}


def largest_weight(model: ov.Model) -> int:
    """Largest absolute value of the weights, as they are in INT8."""
    weights = [op for op in model.get_ops() if op.get_type_name() == "Constant" and op.get_element_type() == ov.Type.i8]
    assert len(weights) >= 6
    return max(int(np.abs(op.get_data().astype(int)).max()) for op in weights)


@pytest.mark.slow
def test_as_exported(files: Files) -> None:
    exported = files.model.to_openvino(
        files.folder, "int8", compression_type=CompressionType.INT8_PTQ, datamodule=files.datamodule
    )
    models = ov.Core().read_model(exported), files.quantised(ALL)
    assert consumers(models[0]) == consumers(models[1])
    image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    maps = [ov.Core().compile_model(model, "CPU")(image)["anomaly_map"] for model in models]
    np.testing.assert_array_equal(*maps)
    assert np.ptp(maps[0]) > 0


@pytest.mark.parametrize(
    ("choice", "kinds"), [(PIXELS, {"MatMul"}), (DEPTHWISE, {"GroupConvolution"}), (MAPS, {"Interpolate"})]
)
def test_parts_in_float32(files: Files, choice: str, kinds: set[str]) -> None:
    default, without = consumers(files.quantised(ALL)), consumers(files.quantised(f"without {choice}"))
    assert {kind for kind in default | without if without[kind] > default[kind]} - {"ShapeOf"} == kinds
    assert len(quantised(files.quantised(f"without {choice}"))) > len(quantised(files.quantised(ALL)))


@pytest.mark.slow
def test_reconstruction_error_in_float32(files: Files) -> None:
    """NNCF quantises it only if the model's type is not known either."""
    unknown = consumers(files.quantised(f"without {TRANSFORMER}"))
    both = quantize(ov.Core().read_model(files.exported), files.datamodule, (64, 64), without=(TRANSFORMER, ERROR))
    assert unknown["ReduceL2"] == 0
    assert consumers(both)["ReduceL2"] == 1
    assert files.quantised(f"without {ERROR}") is not files.quantised(ALL)


def test_ranges_and_scales(files: Files) -> None:
    default = files.quantised(ALL)
    assert largest_weight(default) <= 64
    assert largest_weight(files.quantised(f"without {OVERFLOW}")) == 127
    before = ranges(default)
    for choice in (RANGES, RECTANGLES):
        after = ranges(files.quantised(f"without {choice}"))
        assert after.keys() == before.keys()
        assert sum(after.values()) < 0.9 * sum(before.values())
    assert any("smooth_quant" in name for name in before)
    assert not any("smooth_quant" in name for name in ranges(files.quantised(f"without {TRANSFORMER}")))


def test_without_any(files: Files) -> None:
    """What is left are the images: anomalib's are of the validation."""
    none, own = files.quantised("without all of these"), files.quantised(ANOMALIB)
    assert consumers(none) == consumers(own)
    assert {"GroupConvolution", "Interpolate", "ReduceL2", "MatMul"} <= consumers(own).keys()
    assert ranges(none) != ranges(own)


def test_an_unknown_choice_is_an_error(files: Files) -> None:
    with pytest.raises(ValueError, match="no choice smoothing: without takes overflow fix, largest ranges, "):
        quantize(ov.Core().read_model(files.exported), files.datamodule, (64, 64), without=["smoothing"])


def test_rows(files: Files, tmp_path: Path, monkeypatch) -> None:
    """Each variant has a row, which is written when it is done."""
    called = []

    def use(name: str) -> Any:
        def function(model: ov.Model, datamodule: Any, size: tuple[int, int]) -> ov.Model:
            assert datamodule.name == "Products"
            assert size == (64, 64)
            if name == "broken":
                raise RuntimeError("no such thing")
            called.append(name)
            return model if name == "exact" else files.quantised(name)

        return function

    monkeypatch.setattr(UniAD, "to_openvino", lambda *args: files.exported)  # it takes its time

    def variants_are(*names: str) -> None:
        monkeypatch.setattr(quantization, "variants", lambda: {name: use(name) for name in names})

    def run() -> pd.DataFrame:
        quantization.quantization(files.checkpoint, files.data, output_dir=tmp_path)
        return pd.read_csv(tmp_path / "quantization.csv").set_index("variant")

    variants_are("exact", "broken")
    with pytest.raises(RuntimeError, match="no such thing"):
        run()
    variants_are("exact", ANOMALIB)
    rows = run()
    assert called == ["exact", "exact", ANOMALIB]
    exact, own = rows.loc["exact"], rows.loc[ANOMALIB]
    assert exact["map_difference_max"] < 1e-4 < 1e-3 < own["map_difference_mean"] < own["map_difference_max"]
    same = ["image_AUROC_change", "pixel_AUROC_change", "pixel_AUPRO_change", "pixel_AUROC_largest_change"]
    assert (exact[same].abs() < 1e-5).all()
    assert abs(own["pixel_AUROC_change"]) > 1e-4
    assert abs(own["pixel_AUROC_largest_change"]) > abs(own["pixel_AUROC_change"])
    assert exact["size_bytes"] == pytest.approx(size_on_disk(files.exported), rel=0.02)
    assert [exact["quantised"], own["quantised"]] == [0, len(quantised(files.quantised(ANOMALIB)))]
    assert [exact["images"], exact["categories"], exact["seed"]] == [8, 2, 0]
    assert len(rows) == 2
    assert {"command", "versions", "device"} <= set(rows)


def test_what_is_missing_is_named(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no variant nothing; there are as exported, without "):
        quantization.quantization(files.checkpoint, files.data, ["nothing"], tmp_path)
    with pytest.raises(ValueError, match="The folder of the test images is missing"):
        quantization.quantization(files.checkpoint, output_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        quantization.quantization(tmp_path / "model.ckpt", files.data, output_dir=tmp_path)
