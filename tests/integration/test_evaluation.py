# SPDX-License-Identifier: Apache-2.0
"""What a test leaves behind: tables, predictions, pictures and thresholds of categories."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.models import Padim, Patchcore
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch.utils.data import DataLoader

import evaluation_worker
from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.metrics import PerCategoryEvaluator
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from helpers import make_mvtec_like
from replay import METRICS
from small import SMALL, quiet_engine

pytestmark = [pytest.mark.filterwarnings("ignore:.*(does not have many workers|LeafSpec)"), pytest.mark.curves]

PREDICTIONS = [
    "path",
    "category",
    "label",
    "product",
    "raw_score",
    "normalised_score",
    "threshold",
    "decision",
    "error",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> MultiCategory:
    root = make_mvtec_like(tmp_path_factory.mktemp("data") / "Products", sizes={"bottle": (72, 90), "cable": (64, 64)})
    return MultiCategory("MVTecAD", root, train_batch_size=2, eval_batch_size=4, num_workers=0)


@pytest.fixture(scope="module")
def trained(data: MultiCategory, tmp_path_factory) -> tuple[Path, Path]:
    """Folder of a training with its test, and its checkpoint."""
    runner = quiet_engine(tmp_path_factory.mktemp("train"), max_epochs=1)
    runner.train(UniAD(**SMALL, seed=1), datamodule=data)
    return Path(runner.trainer.default_root_dir), Path(runner.best_model_path)


def evaluate(data, folder, checkpoint, **arguments) -> Path:
    runner = quiet_engine(folder)
    runner.test(UniAD(**SMALL, evaluator=PerCategoryEvaluator(**arguments)), datamodule=data, ckpt_path=checkpoint)
    return Path(runner.trainer.default_root_dir)


def test_files_of_a_run(trained) -> None:
    run, _ = trained
    assert sorted(path.name for path in (run / "curves").iterdir()) == ["bottle.png", "cable.png"]
    with Image.open(run / "curves" / "cable.png") as picture:
        assert picture.size[0] >= 1000
    document = json.loads((run / "metrics.json").read_text())
    table = pd.read_csv(run / "metrics.csv").set_index("category")
    assert document["metrics"] == list(METRICS)
    for category in ("bottle", "cable"):
        one = document["categories"][category]
        assert one["images"] == 6
        assert set(one["thresholds"]) == {"image", "pixel"}
        for name in METRICS:
            assert table.loc[category, name] == pytest.approx(one["values"][name], abs=1e-12)
    assert document["mean"]["pixel_AUPRO"] == pytest.approx(table.loc[["bottle", "cable"], "pixel_AUPRO"].mean())
    assert document["run"]["pixel_resolution"] == "model 64 x 64"
    assert document["run"]["decisions"] == "global"
    assert "Thresholds of the categories" in (run / "metrics.md").read_text()


def test_predictions_of_a_test(trained) -> None:
    run, checkpoint = trained
    table = pd.read_csv(run / "predictions.csv")
    assert list(table) == PREDICTIONS
    assert len(table) == 12
    assert all(Path(path).is_file() for path in table.path)
    decided = table.decision == "anomalous"
    assert (decided == (table.raw_score > table.threshold)).all()
    assert (decided == (table.normalised_score > 0.5)).all()
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert table.threshold.unique() == pytest.approx([float(state["post_processor._image_threshold"])])
    metrics = pd.read_csv(run / "metrics.csv").set_index("category")
    for category, rows in table.groupby("category"):
        labels = rows.label == "anomalous"
        assert metrics.image_AUROC[category] == pytest.approx(roc_auc_score(labels, rows.raw_score), abs=1e-6)
        assert metrics.image_AP[category] == pytest.approx(average_precision_score(labels, rows.raw_score), abs=1e-6)
        assert metrics.image_F1Score[category] == pytest.approx(f1_score(labels, rows.decision == "anomalous"))


def test_thresholds_of_categories_travel_in_the_checkpoint(data, trained, tmp_path: Path) -> None:
    run, checkpoint = trained
    kept = torch.load(checkpoint, weights_only=True)["category_thresholds"]
    plain = pd.read_csv(run / "predictions.csv")
    for category, rows in plain.groupby("category"):  # validation images are the test images here
        labels = rows.label == "anomalous"
        best = max(f1_score(labels, rows.raw_score >= score) for score in rows.raw_score)
        assert f1_score(labels, rows.raw_score > kept[category]["image"]) == pytest.approx(best)

    folder = evaluate(data, tmp_path, checkpoint, thresholds="category")
    table = pd.read_csv(folder / "predictions.csv")
    assert (table.threshold == table.category.map(lambda name: kept[name]["image"])).all()
    decided = table.decision == "anomalous"
    assert (decided == (table.raw_score > table.threshold)).all()
    assert (decided == (table.normalised_score > 0.5)).all()
    metrics = pd.read_csv(folder / "metrics.csv").set_index("category")
    assert (metrics.decisions == "category").all()
    before = pd.read_csv(run / "metrics.csv").set_index("category")
    for category, rows in table.groupby("category"):
        labels = rows.label == "anomalous"
        assert metrics.image_F1Score[category] == pytest.approx(f1_score(labels, rows.decision == "anomalous"))
        assert metrics.image_F1Score[category] == pytest.approx(before.image_F1Max[category])
    names = [name for name in METRICS if "F1Score" not in name]
    pd.testing.assert_frame_equal(metrics[names], before[names])


def test_decisions_of_a_prediction(data, trained, tmp_path: Path) -> None:
    _, checkpoint = trained
    kept = torch.load(checkpoint, weights_only=True)["category_thresholds"]

    def predicted(name, path, **arguments) -> pd.DataFrame:
        runner = quiet_engine(tmp_path / name)
        model = UniAD(**SMALL, evaluator=PerCategoryEvaluator(**arguments))
        dataset = PredictDataset(path=path, image_size=(70, 70))
        runner.predict(model=model, dataset=dataset, ckpt_path=checkpoint)
        return pd.read_csv(Path(runner.trainer.default_root_dir) / "predictions.csv")

    folder = data.root / "cable" / "test" / "broken"
    table = predicted("path", folder, thresholds="category")
    assert list(table.category) == ["cable"] * 3
    assert table.label.isna().all()
    assert (table.threshold == kept["cable"]["image"]).all()
    assert ((table.decision == "anomalous") == (table.raw_score > table.threshold)).all()
    table = predicted("given", folder, thresholds="category", category="bottle")
    assert (table.threshold == kept["bottle"]["image"]).all()
    table = predicted("global", folder)
    assert table.threshold.nunique() == 1
    assert table.threshold[0] not in {levels["image"] for levels in kept.values()}

    loose = tmp_path / "loose"
    loose.mkdir()
    Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save(loose / "a.png")
    table = predicted("loose", loose, thresholds="category")
    assert table.category.isna().all(), "nothing tells the category"
    with pytest.raises(ValueError, match="category is 'nut', but the model has thresholds of bottle, cable"):
        predicted("wrong", folder, thresholds="category", category="nut")


def test_categories_are_finished_one_after_the_other(data, tmp_path: Path, monkeypatch) -> None:
    """With the last image of a category, in tests and validations, its values are computed and its scores dropped."""
    kept: list[int] = []
    update = CategoryMetrics.update

    def look(self, batch) -> None:
        update(self, batch)
        kept.append(len({category for _, category in self._pools}))

    monkeypatch.setattr(CategoryMetrics, "update", look)
    runner = quiet_engine(tmp_path, max_epochs=1)
    runner.train(UniAD(**SMALL, visualizer=False), datamodule=data)
    # Batches of 4: bottle has 6 images, so the second batch has its last two and the first two of cable.
    assert kept == [1, 1, 0] * 2


def test_new_images_of_all_kinds(trained, tmp_path: Path) -> None:
    """Sizes and modes may differ; a broken file is left out and named in the end, more than 8 bits are refused."""
    folder = tmp_path / "new"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 60, 4), dtype=np.uint8)
    Image.fromarray(noise[:70, :, 0]).save(folder / "grey.png")
    Image.fromarray(noise).save(folder / "transparent.png")
    Image.fromarray(noise[:60, :, :3]).save(folder / "small.jpg")
    Image.fromarray(noise[..., 0]).save(folder / "larger.png")

    def predict(name: str) -> Path:
        runner = quiet_engine(tmp_path / name)
        runner.predict(model=UniAD(**SMALL, visualizer=True), data_path=folder, ckpt_path=trained[1])
        return Path(runner.trainer.default_root_dir)

    results = predict("whole")
    table = pd.read_csv(results / "predictions.csv")
    assert sorted(Path(path).name for path in table.path) == sorted(path.name for path in folder.iterdir())
    assert table.raw_score.notna().all()
    assert len([path for path in (results / "images").rglob("*") if path.is_file()]) == 4
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    with pytest.raises(ValueError, match=r"sixteen\.png has more than 8 bits .* predict with `anomalib-uniad predict`"):
        predict("deep")
    (folder / "sixteen.png").unlink()
    (folder / "broken.png").write_bytes((folder / "grey.png").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"1 of 5 images cannot be read: .*broken\.png .* The others were predicted\."):
        predict("broken")
    (path,) = (tmp_path / "broken").rglob("predictions.csv")
    pd.testing.assert_frame_equal(pd.read_csv(path), table)
    assert len([path for path in (path.parent / "images").rglob("*") if path.is_file()]) == 4
    dataset = PredictDataset(path=folder, image_size=(70, 70))
    loader = DataLoader(dataset, collate_fn=dataset.collate_fn, num_workers=1)
    model, runner = UniAD(**SMALL), quiet_engine(tmp_path / "workers")
    with pytest.raises(ValueError, match=r"1 of 5 images cannot be read: .* Nothing was predicted\."):
        runner.predict(model=model, dataloaders=loader, ckpt_path=trained[1])
    for path in folder.iterdir():
        path.write_text("no image")
    with pytest.raises(ValueError, match=r"5 of 5 images cannot be read: .* Nothing was predicted\."):
        predict("nothing")


def test_images_of_no_known_category(data, trained, tmp_path: Path, caplog) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save(loose / "a.png")
    model = UniAD(**SMALL, evaluator=PerCategoryEvaluator(thresholds="category"))
    runner = quiet_engine(tmp_path)
    runner.predict(model=model, dataset=PredictDataset(path=loose, image_size=(70, 70)), ckpt_path=trained[1])
    assert "1 images were decided by the global threshold" in caplog.text


def test_a_category_without_thresholds(data, trained, tmp_path: Path) -> None:
    _, checkpoint = trained
    changed = torch.load(checkpoint, weights_only=True)
    del changed["category_thresholds"]["cable"]
    torch.save(changed, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match="has none of cable, only of bottle"):
        evaluate(data, tmp_path, tmp_path / "changed.ckpt", thresholds="category")


def test_thresholds_without_an_evaluator(trained) -> None:
    """They stay with the model, which can still be exported with them."""
    _, checkpoint = trained
    model = UniAD.load_from_checkpoint(checkpoint, evaluator=False)
    kept = torch.load(checkpoint, weights_only=True)["category_thresholds"]
    assert model.metadata.category_thresholds == kept


def test_scores_of_models_that_return_something_else(data, tmp_path: Path) -> None:
    """The scores are those before anomalib cuts them, whatever the torch model returns."""

    class Tuples(UniAD):
        def test_step(self, batch, *args, **kwargs):
            batch = super().validation_step(batch)  # the torch model as a whole is never called
            return batch.update(pred_score=batch.pred_score + 10.0 * ("cable" in batch.image_path[0]))

    model = Tuples(**SMALL, seed=1)
    for level in ("image", "pixel"):
        getattr(model.post_processor, f"_{level}_threshold").fill_(0.0)
        getattr(model.post_processor, f"{level}_min").fill_(0.0)
        getattr(model.post_processor, f"{level}_max").fill_(1e-9)
    runner = quiet_engine(tmp_path)
    runner.test(model, dataloaders=_loaders(data))
    folder = Path(runner.trainer.default_root_dir)
    table = pd.read_csv(next(folder.rglob("predictions.csv")))
    assert (table.normalised_score == 1.0).all()
    assert table.raw_score.nunique() > 6
    metrics = pd.read_csv(next(folder.rglob("metrics.csv"))).set_index("category")
    for category, rows in table.groupby("category"):
        expected = roc_auc_score(rows.label == "anomalous", rows.raw_score)
        assert metrics.image_AUROC[category] == pytest.approx(expected, abs=1e-6)
    assert metrics.scores.unique().tolist() == ["raw"]


def _loaders(data: MultiCategory):
    data.setup()
    return data.test_dataloader()


def test_fast_dev_run_leaves_no_files(data, tmp_path: Path) -> None:
    runner = quiet_engine(tmp_path, fast_dev_run=True)
    runner.train(UniAD(**SMALL, visualizer=False, resume_interval=0), datamodule=data)
    assert not list(tmp_path.rglob("*.csv"))


def test_no_thresholds_of_categories(data, tmp_path: Path) -> None:
    model = UniAD(**SMALL, evaluator=PerCategoryEvaluator(thresholds="category"))
    with pytest.raises(ValueError, match="the model has none of categories"):
        quiet_engine(tmp_path).test(model, datamodule=data)


@pytest.mark.parametrize("name", ["pixel_resolution", "thresholds"])
def test_unknown_choice(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got 'some'"):
        PerCategoryEvaluator(**{name: "some"})


def test_original_resolution(data, trained, tmp_path: Path) -> None:
    run, checkpoint = trained
    folder = evaluate(data, tmp_path, checkpoint, pixel_resolution="original")
    table = pd.read_csv(folder / "metrics.csv").set_index("category")
    before = pd.read_csv(run / "metrics.csv").set_index("category")
    assert (table.pixel_resolution == "original").all()
    image = [name for name in METRICS if name.startswith("image")]
    pd.testing.assert_frame_equal(table[image], before[image])
    # Images of cable have the model's size, so nothing changes; those of bottle have not.
    pixel = [name for name in METRICS if name.startswith("pixel")]
    pd.testing.assert_series_equal(table.loc["cable", pixel], before.loc["cable", pixel], check_exact=False, rtol=1e-5)
    assert (table.loc["bottle", pixel] != before.loc["bottle", pixel]).all()


@pytest.mark.parametrize(("cls", "arguments"), [(Padim, {"n_features": 8}), (Patchcore, {"num_neighbors": 1})])
def test_any_model(data, tmp_path: Path, cls, arguments) -> None:
    """PaDiM and PatchCore with the evaluator of this package, whose thresholds travel in their checkpoints too."""
    model = cls(
        backbone="resnet18",
        layers=["layer1"],
        pre_trained=False,
        pre_processor=Padim.configure_pre_processor(image_size=(32, 32)),
        evaluator=PerCategoryEvaluator(thresholds="category"),
        visualizer=False,
        **arguments,
    )
    runner = quiet_engine(tmp_path, max_epochs=1)
    results = runner.train(model, datamodule=data)[0]
    assert results.keys() == {f"{name}{end}" for name in METRICS for end in ("", "/bottle", "/cable")}
    kept = torch.load(runner.best_model_path, weights_only=False)["category_thresholds"]  # PatchCore's has an enum
    table = pd.read_csv(Path(runner.trainer.default_root_dir) / "predictions.csv")
    assert (table.threshold == table.category.map(lambda name: kept[name]["image"])).all()
    model.eval()
    with torch.no_grad():
        batches = [model.pre_processor.transform(batch.image) for batch in data.test_dataloader()]
        scores = torch.cat([model.model(images).pred_score for images in batches])
    assert table.raw_score.tolist() == pytest.approx(scores.ravel().tolist(), rel=1e-5)


@pytest.mark.slow  # tests/unit/metrics/test_batches.py and the metrics of two processes are faster
def test_two_processes_give_the_same_files(tmp_path: Path) -> None:
    """Each image counts once, although two processes have 20 each of 39 images."""
    command = [sys.executable, "-W", "ignore", evaluation_worker.__file__]
    path = os.pathsep.join([str(Path(evaluation_worker.__file__).parent), os.environ.get("PYTHONPATH", "")])
    evaluation_worker.main(1, tmp_path / "1")
    done = subprocess.run(
        [*command, "2", str(tmp_path / "2")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for name in ("metrics.csv", "validation.csv"):
        one, two = (pd.read_csv(tmp_path / str(processes) / name) for processes in (1, 2))
        pd.testing.assert_frame_equal(one.drop(columns="command"), two.drop(columns="command"), rtol=1e-12)
        assert one.pixel_AUPRO.notna().all()
    one, two = (json.loads((tmp_path / str(processes) / "metrics.json").read_text()) for processes in (1, 2))
    assert sum(category["images"] for category in two["categories"].values()) == 39
    assert one["categories"] == two["categories"]
    one, two = (pd.read_csv(tmp_path / str(processes) / "predictions.csv") for processes in (1, 2))
    pd.testing.assert_frame_equal(one.sort_values("path", ignore_index=True), two)
