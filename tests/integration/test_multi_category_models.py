# SPDX-License-Identifier: Apache-2.0
"""anomalib's models on several categories, and on one as if MultiCategory were not there."""

import json
from pathlib import Path

import pandas as pd
import pytest
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.metrics import Evaluator
from anomalib.models import Padim, Patchcore
from anomalib.pipelines.benchmark.job import BenchmarkJob
from lightning.pytorch import seed_everything

import distributed_worker
from anomalib_uniad.data import MultiCategory
from anomalib_uniad.metrics import PerCategoryEvaluator
from anomalib_uniad.metrics.category_metrics import CategoryMetrics
from helpers import make_mvtec_like
from replay import METRICS, make_batch

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error:::anomalib_uniad")]

STOCK = ("image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score")  # of anomalib
KEYS = {f"{metric}{part}" for metric in METRICS for part in ("", "/bottle", "/cable")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_mvtec_like(tmp_path_factory.mktemp("x") / "line_3", sizes={"bottle": (64, 64), "cable": (48, 80)})


def make_model(cls, **arguments):
    small = {"backbone": "resnet18", "pre_trained": False, "layers": ["layer1", "layer2"], **arguments}
    if cls is Padim:
        small["n_features"] = 8
    return cls(**small, pre_processor=cls.configure_pre_processor(image_size=(32, 32)))


def fit_and_test(cls, datamodule, folder, **arguments):
    seed_everything(1)
    model = make_model(cls, **arguments)
    engine = Engine(default_root_dir=folder, accelerator="cpu", devices=1, enable_progress_bar=False)
    engine.fit(model, datamodule=datamodule)
    return model, engine, engine.test(model, datamodule=datamodule)[0]


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}


@pytest.mark.parametrize("cls", [Patchcore, Padim])
def test_several_categories(root, tmp_path, cls, caplog):
    caplog.set_level("INFO", "anomalib_uniad")
    datamodule = MultiCategory(root=root, num_workers=0, eval_batch_size=5)
    model, engine, results = fit_and_test(cls, datamodule, tmp_path)
    assert set(results) == KEYS
    assert type(model.evaluator) is PerCategoryEvaluator
    assert f"evaluator of {cls.__name__} replaced by PerCategoryEvaluator" in caplog.text
    assert [type(item) for item in engine.trainer.callbacks].count(PerCategoryEvaluator) == 1
    for metric in METRICS:
        mean = (results[f"{metric}/bottle"] + results[f"{metric}/cable"]) / 2
        assert results[metric] == pytest.approx(mean, abs=1e-6)

    run = tmp_path / cls.__name__ / "line_3" / "v0"
    expected = {Path(path).relative_to(root).as_posix() for path in datamodule.test_data.samples.image_path}
    assert files_in(run / "images") == expected
    table = pd.read_csv(run / "metrics.csv").set_index("category")
    assert list(table.index) == ["bottle", "cable", "mean"]
    assert table.pixel_AUROC["cable"] == pytest.approx(results["pixel_AUROC/cable"], abs=1e-7)
    assert set(table.model) == {cls.__name__}
    assert set(table.dataset) == {"line_3"}
    assert set(table.epochs) == {1}
    assert set(table.seed) == {1}

    again = engine.test(model, datamodule=datamodule, ckpt_path=engine.best_model_path)[0]
    assert again == results
    assert len(list(tmp_path.rglob("metrics*.csv"))) == 2


@pytest.mark.parametrize("cls", [Patchcore, Padim])
def test_one_category_is_as_with_anomalib_alone(root, tmp_path, cls):
    _, _, expected = fit_and_test(cls, MVTecAD(root=root, category="cable", num_workers=0), tmp_path / "a")
    datamodule = MultiCategory("MVTecAD", root, ["cable"], num_workers=0)
    model, _, results = fit_and_test(cls, datamodule, tmp_path / "b")
    assert results == expected
    assert list(results) == list(STOCK)
    assert type(model.evaluator) is Evaluator
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


def test_metrics_in_one_pool_on_request(root, tmp_path):
    datamodule = MultiCategory(root=root, num_workers=0, per_category_metrics=False)
    assert set(fit_and_test(Padim, datamodule, tmp_path)[2]) == set(STOCK)


def test_synthetic_validation_and_test_images(root, tmp_path):
    datamodule = MultiCategory(root=root, num_workers=0, test_split_mode="synthetic", val_split_mode="synthetic")
    _, _, results = fit_and_test(Padim, datamodule, tmp_path)
    assert "image_AUROC/cable" in results
    images = files_in(tmp_path / "Padim" / "line_3" / "v0" / "images")
    assert len(images) == len(datamodule.test_data)


@pytest.mark.slow
def test_benchmark_of_anomalib(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = [
        BenchmarkJob(
            "cpu", make_model(cls), MultiCategory(root=root, num_workers=0), seed=1, flat_cfg={"model": cls.__name__}
        )
        for cls in (Padim, Patchcore)
    ]
    table = BenchmarkJob.collect([job.run() for job in jobs])
    assert set(table) >= KEYS
    assert len(table) == 2


@pytest.mark.slow
def test_two_processes(tmp_path):
    outputs = distributed_worker.run_both(tmp_path)
    together = CategoryMetrics(list(PerCategoryEvaluator().test_metrics))
    for rank, categories in enumerate(distributed_worker.CATEGORIES):
        for category in categories:
            together.update(make_batch([category] * 4, [0, 0, 1, 1], rank))
    expected = {name: float(value) for name, value in together.compute().logged().items()}
    assert len(expected) == 44
    expected["pixel_threshold"] = distributed_worker.learn(0, 1)
    for output in outputs:
        assert json.loads(output) == pytest.approx(expected)
