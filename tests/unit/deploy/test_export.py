# SPDX-License-Identifier: Apache-2.0
"""What exported files say about a model, and of which size their input is."""

from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from anomalib.models.components.base.export_mixin import ExportMixin
from anomalib.post_processing import PostProcessor

from anomalib_uniad import UniAD
from anomalib_uniad.deploy.export import export_whole, fixes_size, metadata_of, write_metadata
from anomalib_uniad.errors import DiskError, InputError
from anomalib_uniad.inference.metadata import ModelMetadata
from full_disk import full_disk
from small import SMALL
from tiny_openvino import NORMALISED, save_tiny


def test_a_model_that_was_not_trained() -> None:
    assert UniAD(**SMALL).metadata.to_properties() == {
        "model": "UniAD",
        "version": version("anomalib-uniad"),
        "image_size": "[64, 64]",
        "image_score": '{"reduction": "max", "pool_size": 16, "top_fraction": 0.02}',
    }


def learned(**arguments: Any) -> PostProcessor:
    post_processor = PostProcessor(**arguments)
    for name, value in {"_image_threshold": 2.0, "_pixel_threshold": 3.0, "image_min": 1.0, "image_max": 4.0}.items():
        getattr(post_processor, name).fill_(value)
    return post_processor


def test_what_was_learned() -> None:
    thresholds: Any = {"bottle": {"image": 1.5, "pixel": float("nan")}, "cable": {"image": float("nan")}}
    summary = {"dataset": "", "images": 8, "categories": ["bottle", "cable"], "epochs": 2, "seed": None}
    metadata = metadata_of("UniAD", (64, 96), learned(image_sensitivity=0.25), thresholds, summary)
    assert metadata == ModelMetadata(
        model="UniAD",
        version=version("anomalib-uniad"),
        image_size=(64, 96),
        categories=("bottle", "cable"),
        thresholds={"image": 2.0, "pixel": 3.0},
        category_thresholds={"bottle": {"image": 1.5}},  # undefined values are left out
        normalization={"image_min": 1.0, "image_max": 4.0, "image_sensitivity": 0.25},  # both ends or none
        training={"images": 8, "epochs": 2},
    )


@pytest.mark.parametrize("post_processor", [None, torch.nn.Identity(), learned(enable_thresholding=False)])
def test_without_decisions(post_processor: torch.nn.Module | None) -> None:
    metadata = metadata_of("UniAD", None, post_processor, {}, {})
    assert metadata.thresholds == {}
    assert bool(metadata.normalization) == isinstance(post_processor, PostProcessor)


def test_properties_of_an_onnx_file(tmp_path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), file)
    metadata = ModelMetadata(model="UniAD", thresholds={"image": 1.5}, precision="INT8")
    write_metadata(file, metadata)
    properties = {item.key: item.value for item in onnx.load(file).metadata_props}
    assert ModelMetadata.from_properties(properties, file) == metadata


@pytest.mark.parametrize(
    ("arguments", "fixed"),
    [
        ({}, False),
        ({"dynamic_shapes": None}, True),
        ({"dynamic_axes": {"input": {0: "batch"}}}, True),
        ({"dynamic_axes": {"input": {0: "batch", 3: "width"}}}, True),
        ({"dynamic_axes": {"input": {0: "batch", 2: "height", 3: "width"}}}, False),
        ({"dynamic_axes": {"image": {0: "batch", 2: "height", 3: "width"}}, "input_names": ["image"]}, False),
    ],
)
def test_a_side_that_is_not_dynamic_is_fixed(arguments: dict[str, Any], fixed: bool) -> None:
    assert fixes_size(arguments) == fixed


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({}, None),
        ({"dynamic_shapes": None}, (64, 96)),
        ({"dynamic_axes": {"input": {0: "batch", 3: "width"}}}, (64, 96)),
        ({"dynamic_shapes": None, "input_size": (72, 90)}, (72, 90)),
    ],
)
def test_sides_that_are_fixed_are_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], size: tuple[int, int] | None
) -> None:
    """anomalib would take the 32 x 32 pixels with which it probes models."""
    asked: list[tuple[int, int] | None] = []

    def to_onnx(self: Any, export_root: Path, model_file_name: str, input_size: Any, **others: Any) -> Path:
        asked.append(input_size)
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), export_root / "model.onnx")
        return export_root / "model.onnx"

    monkeypatch.setattr(ExportMixin, "to_onnx", to_onnx)
    UniAD(**{**SMALL, "image_size": (64, 96)}).to_onnx(tmp_path, **arguments)
    assert asked == [size]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["full disk", "error"])
def test_an_export_that_fails_leaves_the_older_one(tmp_path: Path, how: str) -> None:
    export_whole(tmp_path, lambda folder: save_tiny(folder / "weights" / "openvino" / "model.xml"))
    before = contents(tmp_path)
    assert sorted(before) == ["weights/openvino/model.bin", "weights/openvino/model.xml"]

    def export(folder: Path) -> Path:
        file = save_tiny(folder / "weights" / "openvino" / "model.xml", replace(NORMALISED, model="other"))
        if how == "error":
            raise RuntimeError("another error")
        return file

    if how == "error":
        with pytest.raises(RuntimeError, match=r"^another error$"):
            export_whole(tmp_path, export)
    else:
        sentence = rf"^{tmp_path} cannot be written: the disk is full; make room, or choose another folder\.$"
        with pytest.raises(DiskError, match=sentence), full_disk(1000):
            export_whole(tmp_path, export)
    assert contents(tmp_path) == before
    how = "well"
    assert export_whole(tmp_path, export) == tmp_path / "weights" / "openvino" / "model.xml"
    assert contents(tmp_path).keys() == before.keys()
    assert contents(tmp_path)["weights/openvino/model.xml"] != before["weights/openvino/model.xml"]


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_full_disk(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_onnx(self: Any, export_root: Path, *_: Any, **__: Any) -> Path:
        tensor = onnx.helper.make_tensor("weights", 1, [1000], bytes(4000), raw=True)
        graph = onnx.helper.make_graph([], "weights", [], [], [tensor])
        onnx.save(onnx.helper.make_model(graph), export_root / "model.onnx")
        return export_root / "model.onnx"

    monkeypatch.setattr(ExportMixin, "to_onnx", to_onnx)
    model = UniAD(**{**SMALL, "backbone": "mobilenetv3_small_050", "neighbor_size": 1})
    export = getattr(model, f"to_{kind}")
    file = export(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DiskError, match=r"cannot be written: (the disk is full|File too large)"), full_disk(2000):
        export(tmp_path)
    assert contents(tmp_path) == before
    assert export(tmp_path) == file


@pytest.mark.parametrize(
    ("part", "name"), [("transformer", "transformer.input_projection.weight"), ("backbone", "backbone")]
)
def test_weights_that_are_not_finite_are_refused(part: str, name: str, tmp_path: Path) -> None:
    model = UniAD(**SMALL)
    next(getattr(model.model, part).parameters()).data.view(-1)[0] = float("inf")
    for export in (model.to_torch, partial(model.to_openvino, compression_type="fp16")):
        with pytest.raises(InputError, match=rf"Weights of the model are not finite: {name}"):
            export(tmp_path)
    assert not list(tmp_path.iterdir())
