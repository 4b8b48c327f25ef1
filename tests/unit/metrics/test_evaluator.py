# SPDX-License-Identifier: Apache-2.0
import logging
import math
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max, F1Score
from anomalib.models.components import AnomalibModule
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from sklearn.metrics import auc as sklearn_auc
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score, roc_curve
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryROC
from torchmetrics.utilities.compute import auc

from anomalib_uniad.metrics import AP, PerCategoryEvaluator, TPRAtFPR, standard_metrics
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from anomalib_uniad.metrics.evaluator import RawOutputs
from replay import METRICS, Replay, make_batch, mixed, post_processor, run

pytestmark = pytest.mark.curves

IMAGE = {"fields": ["pred_score", "gt_label"], "prefix": "image_"}
DEFAULT = list(METRICS)


def by_category(batches) -> dict[str, dict[str, np.ndarray]]:
    """Collect labels, scores, masks and maps of each category, the slow way."""
    rows: dict[str, dict[str, list]] = {}
    for batch in batches:
        for row, path in enumerate(batch.image_path):
            part = rows.setdefault(path.split("/")[-4], {})
            for name in ("gt_label", "pred_score", "pred_label", "gt_mask", "anomaly_map", "pred_mask"):
                part.setdefault(name, []).append(getattr(batch, name)[row].numpy())
    return {name: {k: np.stack(v).ravel() for k, v in part.items()} for name, part in rows.items()}


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
        for level, target, score in (("image", "gt_label", "pred_score"), ("pixel", "gt_mask", "anomaly_map")):
            expected[f"{level}_AP/{name}"] = average_precision_score(part[target], part[score])
            precision, recall, _ = precision_recall_curve(part[target], part[score])
            expected[f"{level}_F1Max/{name}"] = np.nanmax(2 * precision * recall / (precision + recall + 1e-30))
        false, true, _ = roc_curve(part["gt_label"], part["pred_score"], drop_intermediate=False)
        for limit in (2, 5):
            expected[f"image_TPR@FPR{limit}/{name}"] = true[false <= limit / 100].max()
        # A single square per defective image, so regions are images, and all of the same size.
        false, overlap, _ = roc_curve(part["gt_mask"], part["anomaly_map"])
        limit = np.linspace(0, 0.3, 100_001)
        expected[f"pixel_AUPRO/{name}"] = sklearn_auc(limit, np.interp(limit, false, overlap)) / 0.3
    for metric in DEFAULT:
        expected[metric] = np.mean([expected[f"{metric}/{name}"] for name in "abc"])
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        assert results[name] == pytest.approx(value, abs=1e-4 if "AUPRO" in name else 1e-6), name


def test_other_metrics(tmp_path):
    metrics = [AUPR(**IMAGE), F1Max(**IMAGE), AUPRO(fields=["anomaly_map", "gt_mask"], prefix="pixel_")]
    batches = mixed()
    results = run(PerCategoryEvaluator([], metrics), batches, tmp_path)
    assert len(results) == 12
    for name, part in by_category(batches).items():
        assert results[f"image_AUPR/{name}"] == pytest.approx(
            average_precision_score(part["gt_label"], part["pred_score"]), abs=1e-6
        )
        assert results[f"image_F1Max/{name}"] == pytest.approx(
            max(f1_score(part["gt_label"], part["pred_score"] >= s) for s in part["pred_score"]), abs=1e-6
        )


def test_ap_of_scores_outside_the_unit_range():
    """In anomalib's own evaluator too, which gives validation metrics the scores as the model returns them."""
    metric = AP(**IMAGE)
    for batch in mixed(3.0):
        metric.update(batch)
    labels, scores = (torch.cat([getattr(b, name) for b in mixed(3.0)]) for name in ("gt_label", "pred_score"))
    assert float(metric.compute()) == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


@pytest.mark.parametrize("limit", [0.0, 0.02, 0.05, 0.5])
def test_found_in_anomalibs_own_evaluator(limit):
    """The class alone, which sees scores beyond 1 batch by batch, has the value that is computed from a ranking."""
    metric, ours = TPRAtFPR(**IMAGE, fpr_limit=limit), CategoryMetrics([TPRAtFPR(**IMAGE, fpr_limit=limit)])
    for seed in range(4):
        batch = make_batch(["a"] * 50, [0, 1] * 25, seed, scale=3.0)
        metric.update(batch)
        ours.update(batch)
    assert float(metric.compute()) == pytest.approx(ours.compute().values[metric.name, "a"], abs=1e-6)


def test_found_refuses_what_is_no_rate():
    with pytest.raises(ValueError, match=r"fpr_limit must be between 0 and 1, got 5"):
        TPRAtFPR(**IMAGE, fpr_limit=5)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert TPRAtFPR(**IMAGE, strict=False).compute() is None


def test_metrics_with_bins_stay_as_they_are(tmp_path):
    metrics = [AUROC(**IMAGE, thresholds=3), AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", thresholds=3)]
    batches = mixed()
    results = run(PerCategoryEvaluator([], metrics), batches, tmp_path)
    part = by_category(batches)["a"]
    expected = {"image": ("gt_label", "pred_score"), "pixel": ("gt_mask", "anomaly_map")}
    for level, (target, score) in expected.items():
        metric = BinaryROC(thresholds=3)
        rates = metric(torch.tensor(part[score]), torch.tensor(part[target]).int())
        binned = auc(rates[0], rates[1], reorder=True)
        assert results[f"{level}_AUROC/a"] == pytest.approx(float(binned), abs=1e-6)
    exact = roc_auc_score(part["gt_mask"], part["anomaly_map"])
    assert results["pixel_AUROC/a"] != pytest.approx(exact, abs=1e-4)


def test_scores_that_are_not_numbers(tmp_path):
    batches = mixed()
    batches[0].anomaly_map[0, 0, 0] = float("nan")  # of one category
    name = batches[0].image_path[0].split("/")[-4]
    results = run(PerCategoryEvaluator(test_metrics=standard_metrics()), batches, tmp_path)
    assert {key.split("/")[1] for key in results if key.startswith("pixel_AP/")} == set("abc") - {name}
    assert len([key for key in results if key.startswith("image_AP/")]) == 3
    assert "pixel_AUROC, pixel_AP, pixel_F1Max, pixel_AUPRO: scores that are not numbers" in (
        (tmp_path / "metrics.csv").read_text()
    )


def test_one_category_is_logged_as_by_anomalib(tmp_path):
    batches = [make_batch(["a"] * 6, [0, 1, 0, 1, 1, 0], seed) for seed in range(3)]
    stock = run(AnomalibModule.configure_evaluator(), batches, tmp_path)
    own = run(PerCategoryEvaluator(), batches, tmp_path)
    assert list(own) == DEFAULT
    assert {name: own[name] for name in stock} == pytest.approx(stock, abs=1e-6)
    assert len(stock) == 4


def test_validation_defaults_to_the_image_level(tmp_path):
    results = run(PerCategoryEvaluator(), mixed(), tmp_path, stage="validate")
    names = ("image_AUROC", "image_TPR@FPR2", "image_TPR@FPR5")
    assert set(results) == {f"{metric}{name}" for metric in names for name in ("", "/a", "/b", "/c")}
    assert {path.name for path in tmp_path.iterdir()} == {f"validation.{kind}" for kind in ("csv", "md", "json")}
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


def test_missing_predictions(tmp_path):
    batch = make_batch(["a", "b"] * 4, [0, 0, 1, 1] * 2, 1).update(anomaly_map=None, pred_mask=None)
    assert set(run(PerCategoryEvaluator(), [batch], tmp_path)) == {
        f"image_{metric}{name}"
        for metric in ("AUROC", "AP", "F1Max", "TPR@FPR2", "TPR@FPR5", "F1Score")
        for name in ("", "/a", "/b")
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
        assert results.reasons == dict.fromkeys([(name, "empty") for name in DEFAULT], "no test images")

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


class TestMaking:
    def test_from_evaluator_keeps_everything(self):
        metrics = [AUROC(**IMAGE)], [F1Score(**IMAGE)]
        evaluator = PerCategoryEvaluator.from_evaluator(Evaluator(*metrics, compute_on_cpu=False))
        assert [*evaluator.val_metrics, *evaluator.test_metrics] == [*metrics[0], *metrics[1]]
        assert evaluator.compute_on_cpu is False
        assert not PerCategoryEvaluator.from_evaluator(Evaluator()).test_metrics

    def test_takes_over_anomalibs_own_only(self, caplog):
        caplog.set_level(logging.INFO)

        class Other(Evaluator):
            pass

        for stock, taken in ((Evaluator(), True), (Other(), False), (None, False)):
            model = Replay(stock)
            trainer = SimpleNamespace(lightning_module=model, callbacks=[stock, "another"])
            caplog.clear()
            PerCategoryEvaluator.take_over(trainer)
            told = "Metrics are reported per category: evaluator of Replay replaced by PerCategoryEvaluator"
            assert caplog.messages == [told] * taken
            assert (type(model.evaluator) is PerCategoryEvaluator) is taken
            assert trainer.callbacks == [model.evaluator, "another"]
            assert not taken or model.evaluator.log == model.log

    def test_no_metrics(self):
        with pytest.raises(TypeError, match="metrics must be an AnomalibMetric"):
            PerCategoryEvaluator(test_metrics=3)

    def test_checkpoints_do_not_depend_on_the_metrics(self, tmp_path):
        metrics = [AUPRO(fields=["anomaly_map", "gt_mask"]), AUROC(**IMAGE)]
        evaluator = PerCategoryEvaluator([], metrics)
        run(evaluator, mixed(), tmp_path)
        assert not evaluator.state_dict()
        stock = Replay(Evaluator(test_metrics=metrics)).state_dict()
        assert "evaluator.test_metrics.0.fpr_limit" in stock
        Replay(PerCategoryEvaluator()).load_state_dict(stock)


class TestMemory:
    """A category is computed, and its scores dropped, as soon as all of its images were there."""

    def test_categories_in_order(self, monkeypatch):
        order = []
        batches = [make_batch([name] * 4, [0, 1, 1, 0], seed) for seed, name in enumerate("aabbcc")]
        metrics = CategoryMetrics(
            standard_metrics(),
            expected={"a": 8, "b": 8, "c": 8},
            finished=lambda category, results, rankings: order.append((category, len(metrics._pools))),
        )
        for batch in batches:
            metrics.update(batch)
            assert len(metrics._pools) <= 2, "image and pixel scores of one category"
        assert order == [("a", 0), ("b", 0), ("c", 0)]
        plain = CategoryMetrics(standard_metrics())
        for batch in batches:
            plain.update(batch)
        assert metrics.compute().values == plain.compute().values
        assert len(order) == 3, "none of them twice"

    def test_an_image_is_missing(self):
        metrics = CategoryMetrics(standard_metrics(), expected={"a": 9})
        metrics.update(make_batch(["a"] * 4, [0, 1, 1, 0]))
        assert metrics.compute().images == {"a": 4}


class Recording(ProgressBar):
    """Keeps what is printed above it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def print(self, *words) -> None:
        self.lines.append(" ".join(words))

    def disable(self) -> None:
        pass


class TestWiring:
    def test_rows_while_it_runs(self, tmp_path):
        bar = Recording()
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
        results = run(PerCategoryEvaluator(), mixed(), tmp_path, callbacks=[bar], **quiet)
        assert [line.split()[0] for line in bar.lines] == ["image", "AUROC", "a", "b", "c"]
        assert bar.lines[2].split()[1] == f"{100 * results['image_AUROC/a']:.1f}"
        assert max(map(len, bar.lines)) < 80
        assert len(set(map(len, bar.lines))) == 1, "in columns"

    def test_pictures(self, tmp_path):
        run(PerCategoryEvaluator(), mixed(), tmp_path / "with")
        run(PerCategoryEvaluator(pictures=False), mixed(), tmp_path / "without")
        assert (tmp_path / "with" / "curves" / "a.png").is_file()
        assert not (tmp_path / "without" / "curves").exists()
        assert (tmp_path / "without" / "metrics.csv").is_file()

    def test_a_picture_that_fails_costs_nothing_else(self, tmp_path, monkeypatch, caplog):
        def fail(*args):
            raise OSError("no fonts")

        monkeypatch.setattr("anomalib_uniad.metrics.curves.draw_category", fail)
        run(PerCategoryEvaluator(), mixed(), tmp_path)
        assert "There is no picture of 'a': no fonts" in caplog.text
        assert (tmp_path / "metrics.csv").is_file()

    @pytest.mark.parametrize("own", [True, pytest.param(False, marks=pytest.mark.slow)])
    def test_scores_are_those_before_any_post_processor(self, tmp_path, own):
        class Other(Callback):
            def on_test_batch_end(self, trainer, pl_module, outputs, *args):
                outputs.update(pred_score=torch.zeros_like(outputs.pred_score))

        class Processed(Replay):
            post_processor = post_processor((0.0, 0.0, 1e-9), (0.0, 0.0, 1e-9)) if own else Other()

            def configure_callbacks(self):
                return [self.post_processor, self.evaluator]

        expected = run(PerCategoryEvaluator(test_metrics=standard_metrics()), mixed(), tmp_path / "plain")
        trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
        for _ in range(2):
            model = Processed(PerCategoryEvaluator(test_metrics=standard_metrics()))
            results = trainer.test(model, DataLoader(mixed(), batch_size=None), verbose=False)[0]
            assert results == pytest.approx(expected)
            assert sum(isinstance(callback, RawOutputs) for callback in trainer.callbacks) == 1
        table, plain = (pd.read_csv(folder / "predictions.csv") for folder in (tmp_path, tmp_path / "plain"))
        pd.testing.assert_series_equal(table.raw_score, plain.raw_score)
        assert table.normalised_score.nunique() == 1

    def test_nothing_is_kept_of_a_run_that_fails(self, tmp_path):
        class Failing(Replay):
            def test_step(self, batch, batch_idx):
                if batch_idx == 2:
                    raise RuntimeError("of the model")
                return batch

        evaluator = PerCategoryEvaluator()
        trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
        with pytest.raises(RuntimeError, match="of the model"):
            trainer.test(Failing(evaluator), DataLoader(mixed(), batch_size=None), verbose=False)
        assert not evaluator._metrics._pools
        assert evaluator._predictions.table().empty

    def test_checkpoints_without_a_trainer(self):
        evaluator, other = PerCategoryEvaluator(), PerCategoryEvaluator()
        evaluator.category_thresholds = {"a": {"image": 0.5}}
        loops = {"fit_loop": {"epoch_progress": {"current": {"ready": 3}}}}
        for checkpoint, epochs in (
            ({}, None),
            ({"loops": loops}, 3),
            ({"loops": loops, "training_summary": {"epochs": 7}}, 7),
            ({"loops": loops, "training_summary": {"epochs": None}}, 3),
        ):
            for _ in range(2):
                evaluator.on_save_checkpoint(None, None, checkpoint)
                other.on_load_checkpoint(None, None, checkpoint)
            assert other.category_thresholds == {"a": {"image": 0.5}}
            assert other._loaded_epochs == epochs
        other.on_load_checkpoint(None, None, {})
        assert other.category_thresholds == {}

    def test_a_sanity_check_teaches_nothing(self):
        evaluator = PerCategoryEvaluator()
        evaluator.log = lambda *args, **kwargs: None
        trainer = SimpleNamespace(
            sanity_checking=True, val_dataloaders=None, datamodule=None, barebones=False, world_size=1
        )
        for checking in (True, False):
            trainer.sanity_checking = checking
            evaluator.on_validation_epoch_start(trainer, SimpleNamespace(device="cpu"))
            evaluator.on_validation_batch_end(trainer, None, None, mixed()[0], 0)
            evaluator.on_validation_epoch_end(trainer, None)
            assert bool(evaluator.category_thresholds) is not checking

    def test_two_metrics_of_one_name(self):
        with pytest.raises(ValueError, match="test_metrics has several metrics with the name image_AUROC"):
            PerCategoryEvaluator(test_metrics=[AUROC(**IMAGE), AUROC(**IMAGE, thresholds=3)])

    def test_maps_of_another_size_than_the_masks(self, tmp_path):
        batch = make_batch(["a"] * 4, [0, 1, 1, 0])
        batch = batch.update(in_place=False, anomaly_map=torch.rand(4, 4, 16))
        # Thresholds alone are no reason to fail.
        run(PerCategoryEvaluator(), [batch], tmp_path, stage="validate")
        metrics = CategoryMetrics(standard_metrics())
        with pytest.raises(ValueError, match=r"maps of \(4, 16\) pixels cannot be compared with masks of \(8, 8\)"):
            metrics.update(batch)

    @pytest.mark.parametrize("several", [True, False])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_score_that_is_not_a_number_is_never_normal(self, tmp_path, several, value):
        batch = make_batch(["a", "b" if several else "a"] * 4, [0, 0, 1, 1] * 2)
        batch.pred_score[5] = value
        batch.pred_label = batch.pred_score > 0.5
        normal = (~batch.pred_label).nonzero().flatten().tolist()
        message = r"1 of 8 images have a score that is not a number, for example /d/\w/test/x/0_5\.png: nothing"
        with pytest.raises(ValueError, match=message):
            run(PerCategoryEvaluator(), [batch], tmp_path)
        assert (~batch.pred_label).nonzero().flatten().tolist() == [row for row in normal if row != 5]
        table = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False)
        assert table.error.tolist() == ["the score is not a number" if row == 5 else "" for row in range(8)]
        assert (table.decision == "").tolist() == (table.error != "").tolist()
        assert (tmp_path / "metrics.csv").is_file()

    def test_without_scores(self, tmp_path):
        batch = make_batch(["a", "b"] * 4, [0, 0, 1, 1] * 2).update(pred_score=None, anomaly_map=None, pred_mask=None)
        results = run(PerCategoryEvaluator(), [batch], tmp_path)
        assert set(results) == {f"image_F1Score{name}" for name in ("", "/a", "/b")}
        assert "no pred_score from the model" in (tmp_path / "metrics.csv").read_text()

    def test_names_that_are_not_text(self, tmp_path):
        run(PerCategoryEvaluator(), [make_batch(["a\udcff", "x" * 300] * 4, [0, 0, 1, 1] * 2)], tmp_path)
        assert "a\\udcff" in (tmp_path / "metrics.csv").read_text()
        assert len(list((tmp_path / "curves").iterdir())) == 2
