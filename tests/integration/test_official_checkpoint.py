# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' code through the commands, against outputs of the authors' code."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
import yaml
from anomalib.cli import AnomalibCLI
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.cli import main
from anomalib_uniad.deploy.official.backbone import shapes_of
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from anomalib_uniad.model.anomaly_map import AnomalyScore
from helpers import make_mvtec_like
from official import ARCH, generate, small_keys, write_official
from small import quiet_engine

GOLDEN_DIR = Path(os.environ.get("UNIAD_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")
TOLERANCE = 1e-3  # of the largest absolute value


def golden_files(pattern: str) -> list[Path]:
    """Every matching file; a folder without any is a failure, not an empty test."""
    return sorted(GOLDEN_DIR.glob(pattern)) or [GOLDEN_DIR / pattern]


def keys_for(size: tuple[int, int]) -> list[tuple[str, list[int], str]]:
    """Tensors of an official checkpoint for images of a size: the tables of positions and queries follow it."""
    height, width = size[0] // 16, size[1] // 16
    fitting = []
    for key, shape, dtype in json.loads((GOLDEN_DIR / "official_checkpoint_keys.json").read_text()):
        rows = {"row_embed": height, "col_embed": width, "learned_embed": height * width}
        first = next((count for name, count in rows.items() if name in key), None)
        fitting.append((key, shape if first is None else [first, *shape[1:]], dtype))
    return fitting


def assert_close(actual: torch.Tensor, expected: np.ndarray, what: str) -> None:
    assert tuple(actual.shape) == expected.shape, what
    assert np.isfinite(expected).all(), f"{what}: the reference is damaged"
    difference = np.abs(actual.double().numpy() - expected).max() / np.abs(expected).max()
    assert difference < TOLERANCE, f"{what}: {difference:.2e} of the largest value"


@pytest.fixture(scope="module", params=golden_files("full_*.npz"), ids=lambda path: path.stem)
def imported(request, tmp_path_factory) -> tuple[UniAD, torch.Tensor, dict[str, np.ndarray]]:
    """A golden file, its input, and the model that the command makes of its checkpoint."""
    with np.load(request.param, allow_pickle=False) as file:
        golden = dict(file)
    folder = tmp_path_factory.mktemp(request.param.stem)
    size = tuple(int(side) for side in np.broadcast_to(golden["size"], 2))
    state = generate(keys_for(size), int(golden["weight_seed"]))
    arch = json.loads(json.dumps(ARCH))
    arch[2]["kwargs"]["feature_size"] = [side // 16 for side in size]
    official = write_official(folder / "ckpt.pth.tar", state, arch)
    mode = "reflect" if "reflect" in request.param.stem else "zeros"
    main(["import-checkpoint", str(official), str(folder / "out.ckpt"), "--backbone_padding_mode", mode])
    model = UniAD.load_from_checkpoint(folder / "out.ckpt", evaluator=False, visualizer=False).eval()
    model.checkpoint_path = folder / "out.ckpt"
    random = np.random.default_rng([int(number) for number in np.atleast_1d(golden["image_seed"])])
    image = torch.from_numpy(random.normal(0, 1, (1, 3, *size))).float()
    return model, image, golden


def test_imported_checkpoint_gives_what_the_authors_code_gives(imported) -> None:
    model, image, golden = imported
    network = model.model
    with torch.no_grad():
        maps = network.backbone(image)
        features = network.extract(image)
        prediction = network(image)
        assert_close(network.reconstruct(features), golden["feature_rec"], "feature_rec")
    for number, stage in enumerate(maps, start=1):
        assert list(stage.shape) == list(golden[f"stage{number}_shape"])
        assert_close(stage[:, :, :4, :4], golden[f"stage{number}_corner"], f"stage {number}, corner")
        assert_close(stage.mean(dim=(2, 3)), golden[f"stage{number}_mean"], f"stage {number}, mean")
    assert f"stage{len(maps) + 1}_shape" not in golden
    assert_close(features, golden["feature_align"], "feature_align")
    assert_close(prediction.anomaly_map, golden["pred"], "pred")
    assert_close(prediction.pred_score, golden["score_max"], "score_max")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
def test_exported_checkpoint_gives_what_the_authors_code_gives(imported, tmp_path: Path) -> None:
    model, image, golden = imported
    model.pre_processor, model.post_processor = None, None  # the golden input is normalised, its scores are not
    path = model.to_openvino(tmp_path, input_size=tuple(image.shape[2:]))
    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled(image.numpy())
    outputs = {name: value for port, value in result.items() for name in port.get_names()}
    assert_close(torch.from_numpy(outputs["anomaly_map"]), golden["pred"], "pred")
    assert_close(torch.from_numpy(outputs["pred_score"]).reshape(-1), golden["score_max"], "score_max")


def test_default_model_takes_the_imported_checkpoint(imported, tmp_path: Path, monkeypatch) -> None:
    """At 224 px and with zeros, an official checkpoint is of the default model: no config is needed."""
    model, image, golden = imported
    if model.hparams.backbone_padding_mode != "zeros" or tuple(image.shape[2:]) != (224, 224):
        pytest.skip("not the default model")
    monkeypatch.chdir(tmp_path)
    common = ["--model", "UniAD", "--model.pre_trained", "false", "--ckpt_path", str(model.checkpoint_path)]
    AnomalibCLI(["export", *common, "--export_type", "torch"])
    exported = next(tmp_path.rglob("*.pt"))
    network = torch.load(exported, weights_only=False)["model"].model.eval()
    with torch.no_grad():
        assert_close(network(image).anomaly_map, golden["pred"], "pred")


@pytest.mark.parametrize("name", ["backbone_padding", "backbone_padding_mode"])
def test_padding_matters(imported, name: str) -> None:
    """With other amounts, or the other filling, the golden values are missed: the test above sees the padding."""
    model, image, golden = imported
    others = {"static": "timm", "zeros": "reflect", "reflect": "zeros"}
    changed = {**model.hparams, name: others[model.hparams[name]]}
    if name == "backbone_padding" and tuple(image.shape[2:]) == (380, 380):
        pytest.skip("at the native resolution both amounts are the same")
    other = UniAD(**changed, evaluator=False, visualizer=False).eval()
    other.model.load_state_dict(model.model.state_dict())
    with torch.no_grad(), pytest.raises(AssertionError, match="feature_align: "):
        assert_close(other.model.extract(image), golden["feature_align"], "feature_align")


@pytest.mark.parametrize("path", golden_files("metrics*.npz"), ids=lambda path: path.stem)
def test_golden_scores_and_aurocs(path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        golden = dict(file)
    expected = json.loads(str(golden["expected"]))
    maps, masks = torch.from_numpy(golden["preds"])[:, None], torch.from_numpy(golden["masks"])
    categories = [str(name) for name in golden["clsnames"]]
    paths = [f"{category}/test/x/{number}.png" for number, category in enumerate(categories)]
    found = {}
    for score in ("mean", "std", "max"):
        metrics = CategoryMetrics(
            [
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_"),
            ]
        )
        metrics.update(
            ImageBatch(
                image=torch.zeros(len(maps), 3, *maps.shape[2:]),
                image_path=paths,
                pred_score=AnomalyScore(score, 16)(maps),
                gt_label=masks.flatten(1).any(dim=1),
                anomaly_map=maps,
                gt_mask=masks.bool(),
            )
        )
        results = metrics.compute()
        for name in ("image_AUROC", "pixel_AUROC"):
            kind = score if name == "image_AUROC" else "pixel"
            values = {**results.of(name), "mean": results.mean(name)}
            found |= {f"{category}_{kind}_auc": float(value) for category, value in values.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def small_official(folder: Path) -> Path:
    arch = json.loads(json.dumps(ARCH))
    arch[0] = {"name": "backbone", "type": "models.backbones.resnet18", "kwargs": {"outlayers": [1, 2]}}
    arch[2]["kwargs"] = {"nhead": 2, "neighbor_mask": {"neighbor_size": [3, 3], "mask": [True, True, True]}}
    keys = small_keys("module.", shapes_of("resnet18"), channels=192, height=4, width=4)
    return write_official(folder / "ckpt.pth.tar", generate(keys, 5), arch)


@pytest.mark.slow
def test_commands_take_the_imported_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    main(["import-checkpoint", str(small_official(tmp_path)), "out.ckpt"])
    said = capsys.readouterr().out
    for part in (
        "num_heads",
        "config in the file",
        "paper's default",
        "backbone.fc: bias, weight",
        "--config out.yaml",
    ):
        assert part in said
    config = yaml.safe_load(Path("out.yaml").read_text())["model"]["init_args"]
    assert config["neighbor_size"] == [3, 3]
    make_mvtec_like(tmp_path / "data")
    data = ["--data", "MultiCategory", "--data.root", "data", "--data.num_workers", "0"]
    common = ["--config", "out.yaml", "--ckpt_path", "out.ckpt"]
    AnomalibCLI(["test", *common, *data, "--trainer.accelerator", "cpu"])
    table = next(Path("results").rglob("metrics.csv")).read_text()
    assert "bottle" in table
    assert ",7," in table  # epochs of the authors' training
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        AnomalibCLI(["predict", *common, "--data", "data/bottle/test/broken", "--trainer.accelerator", "cpu"])
    assert [str(item.message) for item in warned if "has no thresholds" in str(item.message)]
    AnomalibCLI(["export", *common, "--export_type", "openvino"])
    assert list(Path("results").rglob("model.xml"))


def test_thresholds_can_be_learned(tmp_path: Path, monkeypatch) -> None:
    """As docs/thresholds.md says; the number of epochs stays."""
    monkeypatch.chdir(tmp_path)
    make_mvtec_like(tmp_path / "mydata", good=6, bad=6)
    model = UniAD.from_official(small_official(tmp_path))
    engine = quiet_engine(tmp_path)
    engine.validate(model=model, datamodule=MultiCategory(root="mydata", val_split_mode="from_test", seed=0))
    engine.trainer.save_checkpoint("with-thresholds.ckpt")
    again = UniAD.load_from_checkpoint("with-thresholds.ckpt")
    assert not again.post_processor.image_threshold.isnan()
    assert again.post_processor.image_threshold == model.post_processor.image_threshold
    saved = torch.load("with-thresholds.ckpt", weights_only=True)
    assert saved["training_summary"] == {"epochs": 7}


def test_command_refuses_before_it_works(tmp_path: Path) -> None:
    official = small_official(tmp_path)
    for arguments, message in (
        ([str(official), str(tmp_path / "out.pth")], r"must end in \.ckpt"),
        ([str(official), str(tmp_path / "no" / "out.ckpt")], "no folder .*create it first"),
        ([str(tmp_path / "gone.tar"), str(tmp_path / "out.ckpt")], r"no checkpoint '.*gone\.tar'"),
        ([str(official), str(tmp_path / "out.ckpt"), "--num_heads", "3"], "num_heads"),
        ([str(official), "/sys/out.ckpt"], "Nothing can be written to the folder '/sys'"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["import-checkpoint", *arguments])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pth.tar"]
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(SystemExit, match=r"folder\.ckpt' is a folder"):
        main(["import-checkpoint", str(official), str(tmp_path / "folder.ckpt"), "--overwrite", "true"])
    (tmp_path / "out.yaml").write_text("mine")
    with pytest.raises(SystemExit, match=r"out\.yaml' exists; choose another name"):
        main(["import-checkpoint", str(official), str(tmp_path / "out.ckpt")])
    assert (tmp_path / "out.yaml").read_text() == "mine"
    main(["import-checkpoint", str(official), str(tmp_path / "out.ckpt"), "--overwrite", "true"])
    assert "UniAD" in (tmp_path / "out.yaml").read_text()
