# SPDX-License-Identifier: Apache-2.0
import logging
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch
from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max, F1Score
from anomalib.models.components import AnomalibModule
from lightning.pytorch import LightningModule, Trainer
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch.utils.data import DataLoader

from anomalib_uniad.metrics import PerCategoryEvaluator
from anomalib_uniad.metrics.per_category import CategoryMetrics

IMAGE = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
DEFAULT = ["image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"]


def make_batch(categories, labels, seed=0, masks=True, scale=1.0) -> ImageBatch:
    """Make a batch of random predictions for images (3, 8, 8) of the given categories and labels."""
    generator = torch.Generator().manual_seed(seed)
    count = len(labels)
    mask = torch.zeros(count, 8, 8, dtype=torch.bool)
    mask[torch.tensor(labels, dtype=torch.bool), 2:5, 2:5] = True
    score = torch.rand(count, generator=generator) * scale
    maps = torch.rand(count, 8, 8, generator=generator) * scale
    return ImageBatch(
        image=torch.zeros(count, 3, 8, 8),
        image_path=[f"/d/{name}/test/x/{seed}_{row}.png" for row, name in enumerate(categories)],
        gt_label=torch.tensor(labels),
        gt_mask=mask if masks else None,
        pred_score=score,
        pred_label=score > scale / 2,
        anomaly_map=maps,
        pred_mask=maps > scale / 2,
    )


def mixed(scale=1.0) -> list[ImageBatch]:
    """Make 6 batches in which categories and labels are mixed; with a single image and a single category too."""
    rng = np.random.default_rng(0)
    batches = [
        make_batch(rng.choice(["a", "b", "c"], 9), rng.integers(0, 2, 9).tolist(), seed, scale=scale)
        for seed in range(4)
    ]
    return [*batches, make_batch(["a"], [1], 8, scale=scale), make_batch(["b"] * 4, [0, 1, 1, 0], 9, scale=scale)]


def by_category(batches) -> dict[str, dict[str, np.ndarray]]:
    """Collect labels, scores, masks and maps of each category, the slow way."""
    rows: dict[str, dict[str, list]] = {}
    for batch in batches:
        for row, path in enumerate(batch.image_path):
            part = rows.setdefault(path.split("/")[-4], {})
            for name in ("gt_label", "pred_score", "pred_label", "gt_mask", "anomaly_map", "pred_mask"):
                part.setdefault(name, []).append(getattr(batch, name)[row].numpy())
    return {name: {k: np.stack(v).ravel() for k, v in part.items()} for name, part in rows.items()}


class Replay(LightningModule):
    """A model that returns the batches as they come, with an evaluator as anomalib's models have it."""

    def __init__(self, evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.layer = torch.nn.Linear(1, 1)

    def configure_callbacks(self):
        return [self.evaluator]

    def validation_step(self, batch, batch_idx):
        return batch

    def test_step(self, batch, batch_idx):
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch


def run(evaluator, batches, tmp_path, stage="test", **arguments) -> dict[str, float]:
    if not arguments:
        arguments = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, **arguments)
    loader = DataLoader(batches, batch_size=None)
    results = getattr(trainer, stage)(Replay(evaluator), loader, verbose=False)
    return {name: float(value) for name, value in (results[0] or trainer.logged_metrics).items()}


@pytest.fixture(autouse=True)
def _no_warnings():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*barebones.*")
        warnings.filterwarnings("ignore", ".*LeafSpec")
        yield


@pytest.mark.parametrize("scale", [1.0, 3.0, 100.0])
def test_values_per_category_and_mean(tmp_path, scale):
    # At scale 3, some batches have all scores in [0, 1] and others have not.
    batches = mixed(scale)
    results = run(PerCategoryEvaluator(), batches, tmp_path)
    expected = {}
    for name, part in by_category(batches).items():
        expected[f"image_AUROC/{name}"] = roc_auc_score(part["gt_label"], part["pred_score"])
        expected[f"image_F1Score/{name}"] = f1_score(part["gt_label"], part["pred_label"])
        expected[f"pixel_AUROC/{name}"] = roc_auc_score(part["gt_mask"], part["anomaly_map"])
        expected[f"pixel_F1Score/{name}"] = f1_score(part["gt_mask"], part["pred_mask"])
    for metric in DEFAULT:
        expected[metric] = np.mean([expected[f"{metric}/{name}"] for name in "abc"])
    assert results == pytest.approx(expected, abs=1e-6)


def test_other_metrics(tmp_path):
    metrics = [AUPR(**IMAGE), F1Max(**IMAGE), AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_")]
    batches = mixed()
    results = run(PerCategoryEvaluator([], metrics), batches, tmp_path)
    assert len(results) == 12
    for name, part in by_category(batches).items():
        # Area under the trapezoids, which is not the step-wise average precision.
        assert results[f"image_AUPR/{name}"] == pytest.approx(
            average_precision_score(part["gt_label"], part["pred_score"]), abs=0.06
        )
        assert results[f"image_F1Max/{name}"] == pytest.approx(
            max(f1_score(part["gt_label"], part["pred_score"] >= s) for s in part["pred_score"]), abs=1e-6
        )


def test_one_category_is_logged_as_by_anomalib(tmp_path):
    batches = [make_batch(["a"] * 6, [0, 1, 0, 1, 1, 0], seed) for seed in range(3)]
    stock = run(AnomalibModule.configure_evaluator(), batches, tmp_path)
    assert run(PerCategoryEvaluator(), batches, tmp_path) == stock
    assert list(stock) == DEFAULT


def test_validation_defaults_to_the_image_level(tmp_path):
    results = run(PerCategoryEvaluator(), mixed(), tmp_path, stage="validate")
    assert set(results) == {"image_AUROC", "image_AUROC/a", "image_AUROC/b", "image_AUROC/c"}
    assert not list(tmp_path.iterdir())
    assert run(PerCategoryEvaluator(val_metrics=[]), mixed(), tmp_path, stage="validate") == {}
    both = PerCategoryEvaluator(val_metrics=[AUROC(**IMAGE), AUROC(["anomaly_map", "gt_mask"], prefix="pixel_")])
    assert len(run(both, mixed(), tmp_path, stage="validate")) == 8


def test_barebones(tmp_path):
    usual = run(PerCategoryEvaluator(), mixed(), tmp_path / "a")
    assert run(PerCategoryEvaluator(), mixed(), tmp_path / "b", barebones=True) == usual
    assert not (tmp_path / "b" / "metrics.csv").exists()


def test_nothing_is_left_of_the_last_run(tmp_path):
    evaluator = PerCategoryEvaluator()
    first = run(evaluator, mixed(), tmp_path)
    other = run(evaluator, [make_batch(["x", "y"] * 4, [0, 0, 1, 1] * 2, 5)], tmp_path)
    assert set(other) == {f"{metric}{name}" for metric in DEFAULT for name in ("", "/x", "/y")}
    assert run(evaluator, mixed(), tmp_path) == first


def test_undefined_metrics_are_left_out(tmp_path):
    batches = [
        make_batch(["a"] * 4, [0, 1, 1, 0], 1),
        make_batch(["normal"] * 3, [0, 0, 0], 2),
        make_batch(["defective"] * 3, [1, 1, 1], 3),
        make_batch(["unmasked"] * 4, [0, 1, 1, 0], 4, masks=False),
    ]
    results = run(PerCategoryEvaluator(), batches, tmp_path)
    assert {name for name in results if name.startswith("image_AUROC/")} == {"image_AUROC/a", "image_AUROC/unmasked"}
    assert {name for name in results if name.startswith("pixel_AUROC/")} == {"pixel_AUROC/a", "pixel_AUROC/defective"}
    assert results["image_AUROC"] == pytest.approx((results["image_AUROC/a"] + results["image_AUROC/unmasked"]) / 2)
    frame = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False).set_index("category")
    assert list(frame.index) == ["a", "defective", "normal", "unmasked", "mean"]
    assert frame.note["a"] == ""
    assert frame.note["defective"] == "image_AUROC, image_F1Score: only defective images"
    assert frame.note["normal"] == (
        "image_AUROC, image_F1Score: only normal images; pixel_AUROC, pixel_F1Score: no defective pixels"
    )
    assert frame.note["unmasked"] == "pixel_AUROC, pixel_F1Score: no masks"
    assert frame.note["mean"].startswith("image_AUROC, image_F1Score, pixel_AUROC, pixel_F1Score: over 2 of 4")
    assert frame.image_AUROC["normal"] == ""


def test_nothing_is_defined(tmp_path):
    assert run(PerCategoryEvaluator(), [make_batch(["a", "b"], [0, 0], 1)], tmp_path) == {}
    frame = pd.read_csv(tmp_path / "metrics.csv")
    assert frame[DEFAULT].isna().all(axis=None)


def test_missing_predictions(tmp_path):
    batch = make_batch(["a", "b"] * 4, [0, 0, 1, 1] * 2, 1).update(anomaly_map=None, pred_mask=None)
    assert set(run(PerCategoryEvaluator(), [batch], tmp_path)) == {
        f"image_{metric}{name}" for metric in ("AUROC", "F1Score") for name in ("", "/a", "/b")
    }
    assert "no anomaly_map from the model" in (tmp_path / "metrics.csv").read_text()
    strict = PerCategoryEvaluator(test_metrics=AUROC(fields=["anomaly_map", "gt_mask"]))
    with pytest.raises(ValueError, match="does not have a value for field with name anomaly_map"):
        run(strict, [batch], tmp_path)


def test_metric_without_a_single_number(tmp_path):
    metrics = [F1Score(fields=["pred_label", "gt_label"]), Pair(fields=["pred_score", "gt_label"])]
    results = run(PerCategoryEvaluator([], metrics), mixed(), tmp_path)
    assert set(results) == {"F1Score", "F1Score/a", "F1Score/b", "F1Score/c"}
    assert "Pair: not a number" in (tmp_path / "metrics.csv").read_text()


class Pair(F1Score):
    """Two values."""

    def compute(self):
        return torch.stack([super().compute()] * 2)


class TestKnownCategories:
    def test_order_and_empty_categories(self):
        datamodule = SimpleNamespace(categories=["c", "b", "empty", "a"])
        metrics = CategoryMetrics(PerCategoryEvaluator().test_metrics, datamodule)
        for batch in mixed():
            metrics.update(batch)
        results = metrics.compute()
        assert results.categories == ["c", "b", "empty", "a"]
        assert results.reasons == dict.fromkeys([(name, "empty") for name in DEFAULT], "no images")

    def test_datamodule_without_categories_is_one(self):
        metrics = CategoryMetrics([AUROC(**IMAGE)], SimpleNamespace(category="", name="Folder"))
        for batch in mixed():
            metrics.update(batch)
        assert metrics.compute().categories == ["Folder"]

    def test_published_categories(self):
        batch = make_batch(["a"] * 4, [0, 1, 0, 1])
        mapping = dict(zip(batch.image_path, "xxyy", strict=True))
        metrics = CategoryMetrics([AUROC(**IMAGE)], SimpleNamespace(category_by_path=mapping))
        metrics.update(batch)
        assert set(metrics.compute().logged()) == {"image_AUROC", "image_AUROC/x", "image_AUROC/y"}

    def test_batch_without_paths(self):
        metrics = CategoryMetrics([AUROC(**IMAGE)])
        metrics.update(make_batch(["a", "b"], [0, 1]).update(image_path=None))
        assert metrics.compute().categories == ["unknown"]


class TestTable:
    def test_files(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("PL_GLOBAL_SEED", "7")
        monkeypatch.setattr("sys.argv", ["/usr/bin/anomalib", "test", "--data.root", "my data"])
        results = run(PerCategoryEvaluator(), mixed(), tmp_path)
        frame = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False)
        assert list(frame) == [
            *("category", *DEFAULT, "note", "model", "dataset", "epochs", "seed", "device", "versions", "command")
        ]
        assert list(frame.category) == ["a", "b", "c", "mean"]
        assert frame.image_AUROC[0] == results["image_AUROC/a"]
        assert frame.pixel_F1Score[3] == results["pixel_F1Score"]
        assert (frame.seed == 7).all()
        assert (frame.model == "Replay").all()
        assert (frame.device == "cpu").all()
        assert (frame.epochs == "").all()
        assert (frame.command == "anomalib test --data.root 'my data'").all()
        assert frame.versions[0].startswith("anomalib 2.7")
        markdown = (tmp_path / "metrics.md").read_text().splitlines()
        assert markdown[0].split() == ["|", "category", *(x for name in DEFAULT for x in ("|", name)), "|"]
        assert f"{results['image_AUROC/b']:.4f}" in markdown[3]
        assert "- seed: 7" in markdown
        shown = capsys.readouterr().out
        assert "mean" in shown
        assert f"{results['image_AUROC']:.4f}" in shown

    def test_earlier_files_stay(self, tmp_path):
        (tmp_path / "metrics.csv").write_text("mine")
        (tmp_path / "metrics-1.md").write_text("mine too")
        for _ in range(2):
            run(PerCategoryEvaluator(), mixed(), tmp_path)
        assert (tmp_path / "metrics.csv").read_text() == "mine"
        assert (tmp_path / "metrics-1.md").read_text() == "mine too"
        assert sorted(path.name for path in tmp_path.glob("*-[23].*")) == [
            *("metrics-2.csv", "metrics-2.md", "metrics-3.csv", "metrics-3.md")
        ]

    def test_names_with_markup(self, tmp_path, capsys):
        run(PerCategoryEvaluator(), [make_batch(["[red]", "a|b"] * 4, [0, 0, 1, 1] * 2)], tmp_path)
        assert "[red]" in capsys.readouterr().out
        assert "| a\\|b " in (tmp_path / "metrics.md").read_text()


class TestMaking:
    def test_from_evaluator_keeps_everything(self):
        metrics = [AUROC(**IMAGE)], [F1Score(**IMAGE)]
        evaluator = PerCategoryEvaluator.from_evaluator(Evaluator(*metrics, compute_on_cpu=False))
        assert [*evaluator.val_metrics, *evaluator.test_metrics] == [*metrics[0], *metrics[1]]
        assert evaluator.compute_on_cpu is False
        assert not PerCategoryEvaluator.from_evaluator(Evaluator()).test_metrics

    def test_takes_over_anomalibs_own_only(self):
        class Other(Evaluator):
            pass

        for stock, taken in ((Evaluator(), True), (Other(), False), (None, False)):
            model = Replay(stock)
            trainer = SimpleNamespace(lightning_module=model, callbacks=[stock, "another"])
            PerCategoryEvaluator.take_over(trainer)
            assert (type(model.evaluator) is PerCategoryEvaluator) is taken
            assert trainer.callbacks == [model.evaluator, "another"]
            assert not taken or model.evaluator.log == model.log

    def test_no_metrics(self):
        with pytest.raises(TypeError, match="metrics must be an AnomalibMetric"):
            PerCategoryEvaluator(test_metrics=3)

    def test_has_the_state_of_the_stock_evaluator(self, tmp_path):
        metrics = [AUPRO(fields=["anomaly_map", "gt_mask"]), AUROC(**IMAGE)]
        evaluator = PerCategoryEvaluator([], metrics)
        run(evaluator, mixed(), tmp_path)
        assert evaluator.state_dict().keys() == Evaluator(test_metrics=metrics).state_dict().keys()
