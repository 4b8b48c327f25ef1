# SPDX-License-Identifier: Apache-2.0
"""Each script of examples/, on tiny images with tiny models."""

import importlib.util
import json
import sys
from collections.abc import Callable
from itertools import product as product_of
from pathlib import Path
from typing import Any

import pytest
from anomalib.models import Patchcore

from anomalib_uniad import UniAD
from anomalib_uniad.deploy.official.backbone import shapes_of
from helpers import make_mvtec_like, write_image
from official import ARCH, generate, small_keys, write_official
from small import SMALL

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {**SMALL, "layers": [1, 2]}

pytestmark = pytest.mark.filterwarnings("ignore")  # of anomalib, Lightning, onnx and openvino about themselves


def main_of(name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("examples")
    make_mvtec_like(path / "mydata", train=8, good=4, bad=4)
    return path


@pytest.fixture(autouse=True)
def in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> str:
    """The checkpoint of the first example, which the others use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny = {**TINY, "layer_weights": None, "feature_cache": "off"}
        return str(main_of("train_own_folder")("mydata", epochs=1, **tiny).resolve())


def test_train_own_folder(checkpoint: str, folder: Path) -> None:
    run = Path(checkpoint).parents[2]
    assert run.parents[1] == folder / "results" / "UniAD"
    assert "bottle" in (run / "metrics.md").read_text()
    assert "validation images (mixed, ratio 0.2, seed 0)" in (run / "metrics.csv").read_text()
    assert len(list((run / "images").rglob("*.png"))) == 12  # of 16, one of each product and label is set aside


def test_evaluate(checkpoint: str, capsys) -> None:
    results = main_of("evaluate")(checkpoint, "mydata")
    assert {"image_AUROC", "image_AUROC/bottle", "pixel_AUPRO/cable"} < results.keys()
    assert f"image_AUROC: {results['image_AUROC']:.4f}" in capsys.readouterr().out


def test_thresholds(checkpoint: str, capsys) -> None:
    scores = main_of("thresholds")(checkpoint, "mydata")
    assert scores.keys() == {"global", "category"}
    out = capsys.readouterr().out
    assert "bottle: threshold of images" in out
    assert "cable: threshold of images" in out


@pytest.mark.slow
def test_export_and_predict(checkpoint: str, folder: Path) -> None:
    rows = main_of("export_and_predict")(checkpoint, "mydata")
    assert {row["category"] for row in rows} == {"bottle", "cable"}
    assert {row["decision"] for row in rows} <= {"anomalous", "normal"}
    assert all((folder / "predictions" / row["heatmap"]).is_file() for row in rows)


@pytest.mark.slow
def test_compare_with_patchcore(folder: Path) -> None:
    small = Patchcore.configure_pre_processor((64, 64))
    patchcore = Patchcore(backbone="resnet18", layers=["layer2"], pre_trained=False, pre_processor=small)
    report = main_of("compare_with_patchcore")("mydata", 1, UniAD(**TINY), patchcore)
    text = (folder / report / "report.md").read_text()
    assert "UniAD" in text
    assert "Patchcore" in text
    assert (folder / report / "report.html").is_file()


def test_import_official_checkpoint(folder: Path) -> None:
    arch = json.loads(json.dumps(ARCH))
    arch[0] |= {"type": "models.backbones.resnet18", "kwargs": {"outlayers": [1, 2], "outstrides": [4, 8]}}
    sizes = {"hidden_dim": 16, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 32}
    arch[2]["kwargs"] |= {"feature_size": [4, 4], "neighbor_mask": {"neighbor_size": [3, 3]}, **sizes}
    keys = small_keys(backbone=shapes_of("resnet18"), channels=64 + 128)
    file = write_official(folder / "ckpt.pth.tar", generate(keys, seed=0), arch)
    imported = main_of("import_official_checkpoint")(str(file), "mydata")
    assert UniAD.load_from_checkpoint(imported).category_thresholds.keys() == {"bottle", "cable"}


def test_elpv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a package that is made like the real one: images in a folder, labels in a table without commas."""
    package = tmp_path / "elpv_dataset"
    lines = []
    for number, (probability, product) in enumerate(product_of((0.0, 1 / 3, 2 / 3, 1.0), ("mono", "poly"))):
        write_image(package / "data" / "images" / f"{number}.png", (8, 8), number)
        lines.append(f"images/{number}.png  {probability:<18} {product}")
    (package / "data" / "labels.csv").write_text("\n".join(lines))
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "elpv_dataset", raising=False)
    counts = main_of("elpv")(tmp_path / "elpv")
    assert counts == {
        (product, label): count
        for product in ("mono", "poly")
        for label, count in (("good", 1), ("left out", 1), ("defective", 2))
    }
    files = {path.relative_to(tmp_path / "elpv").as_posix() for path in (tmp_path / "elpv").rglob("*.png")}
    good, defective = {"mono/good/0.png", "poly/good/1.png"}, {"mono/defective/4.png", "poly/defective/5.png"}
    assert files == good | defective | {"mono/defective/6.png", "poly/defective/7.png"}
    with pytest.raises(FileExistsError):
        main_of("elpv")(tmp_path / "elpv")


def test_every_example_has_a_test() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} - {
        "every_example_has_a_test"
    }
