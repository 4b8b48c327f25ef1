# SPDX-License-Identifier: Apache-2.0
"""Every kind of image file has the same score wherever it is read, or is refused everywhere."""

import csv
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import openvino as ov
import pandas as pd
import pytest
import tifffile
import torch
from anomalib.data import ImageBatch, MVTecAD
from PIL import Image

from anomalib_uniad import MetaFile, MultiCategory, UniAD
from anomalib_uniad.cli import main
from anomalib_uniad.deploy.quantization import calibration_images
from anomalib_uniad.image_files import read_image
from anomalib_uniad.parity.models import ExportedModel, TorchModel, pixels_of
from anomalib_uniad.pictures.visualizer import HeatmapVisualizer
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:::anomalib_uniad")]

RANGE = (100, 4095)
SHAPE = (40, 56)
COLORS = np.random.default_rng(0).integers(0, 256, (*SHAPE, 4), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 4600, SHAPE, dtype=np.uint16)  # 12 bits in 16, and some beyond the range
HOLE = np.where(DEEP > 4500, np.float32("nan"), DEEP)
Write = Callable[[Path], Any]


def picture(mode: str, **options: Any) -> Write:
    """An image of 8 bits, as Pillow writes it."""
    image = Image.fromarray(COLORS).convert(mode)
    return lambda path: image.save(path, **options)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # by 90 degrees
    return exif


def animated(path: Path) -> None:
    first = Image.fromarray(COLORS[..., :3])
    first.save(path, save_all=True, append_images=[Image.new("RGB", first.size, "red")])


def grey_with_transparency(path: Path) -> None:
    """PNG with 16 bits of grey and of transparency, which no library here writes."""
    rows = np.stack([DEEP, np.full_like(DEEP, 65535)], axis=-1).astype(">u2")  # (H, W, 2)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", SHAPE[1], SHAPE[0], 16, 4, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items()]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


EIGHT_BITS: dict[str, Write] = {
    "rgb.png": picture("RGB"),
    "grey.bmp": picture("L"),
    "one bit.png": picture("1"),
    "transparent.png": picture("RGBA"),
    "transparent.webp": picture("RGBA", lossless=True),
    "transparent grey.png": picture("LA"),
    "palette.png": picture("P"),
    "palette, one transparent.png": picture("P", transparency=3),
    "palette, all transparent.png": picture("P", transparency=bytes(range(256))),
    "palette.gif.png": lambda path: Image.fromarray(COLORS[..., :3]).save(path, format="GIF"),
    "cmyk.jpg": picture("CMYK"),
    "cmyk.tif": picture("CMYK"),
    "turned.jpg": picture("RGB", exif=turned()),
    "turned.png": picture("RGB", exif=turned()),
    "turned.tif": lambda path: tifffile.imwrite(path, COLORS[..., :3], extratags=[(274, "H", 1, 6, False)]),
    "animated.png": animated,
    "animated.webp": animated,
    "pages.tiff": animated,
}
# Pillow keeps the higher 8 bits of these.
SIXTEEN_BITS: dict[str, Write] = {
    "colours.png": lambda path: cv2.imwrite(str(path), COLORS[..., :3].astype(np.uint16) * 200),
    "colours.tif": lambda path: tifffile.imwrite(path, COLORS[..., :3].astype(np.uint16) * 200, photometric="rgb"),
    "transparent grey of 16 bits.png": grey_with_transparency,
}
MORE_BITS: dict[str, Write] = {
    "16 bits.png": lambda path: Image.fromarray(DEEP).save(path),
    "16 bits.tif": lambda path: tifffile.imwrite(path, DEEP, compression="zlib", byteorder=">"),
    "12 bits.pgm": lambda path: path.write_bytes(b"P5 %d %d 4600\n" % SHAPE[::-1] + DEEP.astype(">u2").tobytes()),
    "turned, 16 bits.tif": lambda path: tifffile.imwrite(path, DEEP, extratags=[(274, "H", 1, 6, False)]),
    "32 bits.tif": lambda path: tifffile.imwrite(path, DEEP.astype(np.int32) - 50),
    "32 bits without sign.tif": lambda path: tifffile.imwrite(path, DEEP.astype(np.uint32)),
    "float.tif": lambda path: tifffile.imwrite(path, DEEP.astype(np.float32) + 0.5),
}
BROKEN: dict[str, Write] = {
    "text.jpg": lambda path: path.write_text("hello"),
    "empty.PNG": lambda path: path.touch(),
    "cut.png": lambda path: (picture("RGB")(path), path.write_bytes(path.read_bytes()[:900])),
    "double.tif": lambda path: tifffile.imwrite(path, DEEP.astype(np.float64)),
    "hole.tif": lambda path: tifffile.imwrite(path, HOLE),
}
READ = {True: {**EIGHT_BITS, **MORE_BITS}, False: {**EIGHT_BITS, **SIXTEEN_BITS}}  # with a range, and without
REFUSED = {True: {**BROKEN, **SIXTEEN_BITS}, False: {**BROKEN, **MORE_BITS}}


def write(folder: Path, kinds: dict[str, Write]) -> list[Path]:
    folder.mkdir(parents=True)
    for name, function in kinds.items():
        function(folder / name)
    return [folder / name for name in kinds]


def meta_file(root: Path, ranged: bool, training: Sequence[Path], testing: Sequence[Path], **options: Any) -> MetaFile:
    """Images as a datamodule, one at a time."""
    for name, files in (("train.json", training), ("test.json", testing)):
        lines = [{"filename": str(file.relative_to(root)), "label": 0, "clsname": "part"} for file in files]
        (root / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    options = {"value_range": list(RANGE) if ranged else None, "eval_batch_size": 1, "num_workers": 0, **options}
    return MetaFile(root, **options)


class Trained(NamedTuple):
    """A model, its checkpoint and its exported file, once with a range and once without."""

    model: UniAD
    checkpoint: Path
    exported: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Trained]:
    """One training and one export for all; without its range, a model is the same."""
    root, other = tmp_path_factory.mktemp("train"), tmp_path_factory.mktemp("other")
    files = write(root / "images", READ[True])
    model = UniAD(**SMALL, seed=0, resume_interval=0)
    engine = quiet_engine(root, max_steps=1, max_epochs=1)
    engine.fit(model=model, datamodule=meta_file(root, True, files[2:], files[:2], train_batch_size=len(files)))
    engine.trainer.save_checkpoint(root / "model.ckpt")
    restored = UniAD.load_from_checkpoint(root / "model.ckpt")
    exported = restored.to_openvino(root)
    with_range = Trained(restored, root / "model.ckpt", exported)

    content = torch.load(root / "model.ckpt", weights_only=True)
    torch.save({**content, "value_range": None}, other / "model.ckpt")
    graph = ov.Core().read_model(exported)
    graph.set_rt_info("null", ["model_info", "value_range"])
    ov.save_model(graph, other / "model.xml", compress_to_fp16=False)
    without = UniAD.load_from_checkpoint(other / "model.ckpt")
    return {True: with_range, False: Trained(without, other / "model.ckpt", other / "model.xml")}


def predicted(folder: Path) -> dict[str, str]:
    (table,) = folder.rglob("predictions.csv")
    with table.open(encoding="utf-8") as file:
        return {Path(row["path"]).name: row["raw_score"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module", params=[True, False], ids=["range", "no range"])
def ranged(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def scores(models: dict[bool, Trained], ranged: bool, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Scores of the files that are read, a row for each, in all ways."""
    root = tmp_path_factory.mktemp("scores")
    files = write(root / "images", READ[ranged])
    trained = models[ranged]
    found: dict[str, Any] = {}

    normal = write(root / "normal", {"normal.png": picture("YCbCr", format="TIFF", compression="tiff_lzw")})
    good = root / "folders" / "part" / "test" / "good"
    write(good, READ[ranged])
    write(good.parents[1] / "train" / "good", {"normal.png": picture("YCbCr", format="TIFF", compression="tiff_lzw")})
    options: dict[str, Any] = {"value_range": RANGE if ranged else None, "eval_batch_size": 1, "num_workers": 0}
    folders = MultiCategory(root=root / "folders", val_split_mode="none", **options)
    for datamodule in (meta_file(root, ranged, normal, files), folders):
        way = f"test, {datamodule.name}"
        engine = quiet_engine(root / way)
        engine.test(UniAD(**SMALL, visualizer=False), datamodule=datamodule, ckpt_path=trained.checkpoint)
        found[way] = predicted(root / way)

    main(["predict", str(trained.exported), str(root / "images"), "--output", str(root / "predict")])
    found["anomalib-uniad predict"] = predicted(root / "predict")

    torch_model = TorchModel(trained.model, trained.checkpoint)
    exported = ExportedModel(trained.exported, normalises=False)
    found |= {"torch, parity": {}, "exported, parity": {}}
    datamodule = meta_file(root, ranged, normal, files)  # without the resize that a trainer adds
    datamodule.setup()
    for batch in datamodule.test_dataloader():
        pixels = pixels_of(batch, rounded=not ranged)
        name = Path(batch.image_path[0]).name
        found["torch, parity"][name] = torch_model.predict(pixels).scores["raw"]
        found["exported, parity"][name] = exported.predict(pixels).scores["raw"]

    if not ranged:
        engine = quiet_engine(root / "folder")
        folder = root / "images"
        engine.predict(UniAD(**SMALL, visualizer=False), data_path=folder, ckpt_path=trained.checkpoint)
        found["anomalib predict"] = predicted(root / "folder")
    return pd.DataFrame(found).astype(float)


def test_scores_are_the_same(scores: pd.DataFrame, models: dict[bool, Trained], ranged: bool) -> None:
    assert set(scores.index) == set(READ[ranged])
    assert scores.notna().all(axis=None)
    differences = (scores.max(axis=1) - scores.min(axis=1)) / scores.mean(axis=1)
    assert differences.max() < 1e-4, differences[differences >= 1e-4]
    # They depend on the pixels: those of a constant image are others.
    constant = TorchModel(models[ranged].model, models[ranged].checkpoint)
    white = constant.predict(np.full((*SHAPE, 3), 255, np.uint8)).scores["raw"]
    assert (abs(scores["torch, parity"] - white) > 1e-3).all()


def refusals(trained: Trained, ranged: bool, root: Path, file: Path) -> dict[str, str]:
    """What is said about a file in all ways."""
    said = {}

    def refused(way: str, action: Callable[[], Any]) -> None:
        with pytest.raises((ValueError, SystemExit)) as error:
            action()
        said[way] = str(error.value)

    good = write(root / "good", {name: EIGHT_BITS[name] for name in ("rgb.png", "grey.bmp")})
    part = root / "folders" / "part"
    for folder, source in (("train/good", file), ("train/good", good[0]), ("test/good", good[1])):
        (part / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, part / folder)
    folders = MultiCategory(root=part.parent, num_workers=0, value_range=RANGE if ranged else None)
    engine = quiet_engine(root / "runs", max_steps=1)
    refused("train", lambda: engine.fit(model=trained.model, datamodule=folders))
    refused("test", lambda: engine.test(model=trained.model, datamodule=meta_file(root, ranged, good, [file])))

    with pytest.raises(SystemExit):
        main(["predict", str(trained.exported), str(file), "--output", str(root / "predict")])
    (table,) = (root / "predict").rglob("predictions.csv")
    with table.open(encoding="utf-8") as opened:
        (row,) = csv.DictReader(opened)
    said["anomalib-uniad predict"] = row["error"]
    return said


@pytest.mark.parametrize(
    ("ranged", "name"), [(ranged, name) for ranged, kinds in REFUSED.items() for name in kinds], ids=str
)
def test_refused(models: dict[bool, Trained], tmp_path: Path, ranged: bool, name: str) -> None:
    (file,) = write(tmp_path / "bad", {name: REFUSED[ranged][name]})
    with pytest.raises(ValueError, match="cannot be read") as error:
        read_image(file, RANGE if ranged else None)
    start, reason = str(error.value).rstrip(".").split(" cannot be read: ")
    assert start == str(file)
    for way, text in refusals(models[ranged], ranged, tmp_path, file).items():
        assert name in text, way
        assert reason in text, way


def test_another_range_is_refused(models: dict[bool, Trained], tmp_path: Path) -> None:
    """In a test, a resumed training and a quantisation, before any work."""
    files = write(tmp_path / "images", {name: MORE_BITS[name] for name in ("16 bits.png", "float.tif")})
    datamodule = meta_file(tmp_path, True, files[:1], files[1:], value_range=[0, 4095])
    message = r"trained with value_range=\[100\.0, 4095\.0\], but MetaFile has value_range=\[0\.0, 4095\.0\]: give it"
    engine = quiet_engine(tmp_path, max_epochs=3)
    for run in (engine.test, engine.validate, engine.fit):
        with pytest.raises(ValueError, match=message):
            run(model=UniAD(**SMALL), datamodule=datamodule, ckpt_path=models[True].checkpoint)
    with pytest.raises(ValueError, match=message):
        models[True].model.to_openvino(tmp_path, compression_type="int8_ptq", datamodule=datamodule)
    assert not list(tmp_path.rglob("*.xml"))
    with pytest.raises(ValueError, match=r"no value_range, but MetaFile has value_range=.*: leave it out"):
        quiet_engine(tmp_path / "other").test(model=models[False].model, datamodule=datamodule)


def test_calibration(models: dict[bool, Trained], tmp_path: Path) -> None:
    files = write(tmp_path / "images", {name: MORE_BITS[name] for name in ("16 bits.png", "float.tif")})
    datamodule = meta_file(tmp_path, True, files[:1], files[1:])
    datamodule.setup()
    graph = ov.Core().read_model(models[True].exported)
    (images,) = calibration_images(graph, datamodule, models[True].model.model.image_size)
    expected = read_image(files[0], RANGE).transpose(2, 0, 1)[None] / 255
    np.testing.assert_allclose(images.input, expected, atol=1e-6)


def test_feature_cache(tmp_path: Path) -> None:
    """Features of images with more than 8 bits are those of a training without the cache."""
    files = write(tmp_path / "images", MORE_BITS)
    weights = []
    for mode in ("off", "memory"):
        model = UniAD(**SMALL, seed=0, resume_interval=0, feature_cache=mode)
        datamodule = meta_file(tmp_path, True, files[2:], files[:2], train_batch_size=1, val_split_mode="none")
        quiet_engine(tmp_path / mode, max_steps=3).fit(model=model, datamodule=datamodule)
        weights.append(torch.cat([parameter.flatten() for parameter in model.model.transformer.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=0)


def test_other_readers_refuse_more_bits(tmp_path: Path) -> None:
    """Those of anomalib cut off what is above 255; no range reaches them."""
    root = make_mvtec_like(tmp_path / "data", ["bottle"])
    file = root / "bottle" / "test" / "good" / "000.png"
    MORE_BITS["16 bits.png"](file)
    message = rf"000\.png \(it has more than 8 bits \(Pillow's mode {Image.open(file).mode}\): train with"
    for datamodule in (MVTecAD(root, "bottle", num_workers=0), MultiCategory("MVTecAD", root, num_workers=0)):
        with pytest.raises(ValueError, match=message):
            quiet_engine(tmp_path, max_steps=1).fit(model=UniAD(**SMALL), datamodule=datamodule)
    with pytest.raises(ValueError, match="value_range is for own folders"):
        MultiCategory("MVTecAD", root, value_range=[0, 4095])
    files = write(tmp_path / "images", {name: EIGHT_BITS[name] for name in ("rgb.png", "grey.bmp")})
    with pytest.raises(ValueError, match="value_range cannot be used with synthetic defects"):
        meta_file(tmp_path, True, files[:1], files[1:], val_split_mode="synthetic").setup()


def test_heatmaps_show_the_pixels_of_the_model(tmp_path: Path) -> None:
    (file,) = write(tmp_path / "images", {"16 bits.png": MORE_BITS["16 bits.png"]})
    batch = ImageBatch(image=torch.zeros(1, 3, 8, 8), image_path=[str(file)], anomaly_map=torch.rand(1, 8, 8))
    trainer = SimpleNamespace(datamodule=None, default_root_dir=tmp_path)
    HeatmapVisualizer(tmp_path / "x").on_test_batch_end(trainer, SimpleNamespace(value_range=RANGE), None, batch, 0)
    (picture,) = (tmp_path / "x").rglob("*.png")
    image = np.asarray(Image.open(picture), float)[: SHAPE[0], : SHAPE[1]]  # beside it is the heatmap
    np.testing.assert_allclose(image, read_image(file, RANGE), atol=1)
