# SPDX-License-Identifier: Apache-2.0
"""What docs/limits.md promises of numbers: they do not depend on workers, batches or the order of images."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.inference import Inspector
from helpers import make_mvtec_like
from small import SMALL, quiet_engine

ROUNDING = 1e-5  # relative
TINY = {**SMALL, "layers": (0, 1), "seed": 7}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("data") / "Products", sizes={"bottle": (96, 80), "cable": (48, 48)})


def trained(folder: Path, root: Path, workers: int, **arguments) -> dict[str, torch.Tensor]:
    """Weights after two epochs."""
    model = UniAD(**{**TINY, "feature_norm": "standard", **arguments}, resume_interval=0)
    data = MultiCategory("MVTecAD", root, train_batch_size=3, eval_batch_size=4, num_workers=workers)
    quiet_engine(folder, max_epochs=2).fit(model=model, datamodule=data)
    return {name: weight.detach().clone() for name, weight in model.model.transformer.named_parameters()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_weights_do_not_depend_on_workers_or_the_cache(root: Path, tmp_path: Path) -> None:
    """Dropout and jitter draw from the same state, and images come in the same order; bit for bit on one machine."""
    expected = trained(tmp_path / "0", root, 0)
    for workers in (1, 2):
        found = trained(tmp_path / str(workers), root, workers)
        assert [name for name, weight in found.items() if not weight.equal(expected[name])] == []
    other = trained(tmp_path / "other", root, 0, seed=8)
    assert any(not weight.equal(expected[name]) for name, weight in other.items())
    cached = trained(tmp_path / "memory", root, 0, feature_cache="memory")
    for name, weight in cached.items():  # features were computed in other batches
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)
    disk = {"feature_cache": "disk", "feature_cache_dir": tmp_path / "features"}
    copies = {"feature_cache_copies": ["rotate_any"]}
    drawn = [
        trained(tmp_path / f"copies{number}", root, number, **{**disk, **copies, "feature_cache": mode})
        for number, mode in enumerate(("disk", "memory"))
    ]
    assert all(weight.equal(drawn[1][name]) for name, weight in drawn[0].items())
    assert any(not weight.equal(cached[name]) for name, weight in drawn[0].items())


def test_scores_do_not_depend_on_the_batch() -> None:
    """Each image alone, all at once, and in another order: no layer may look at the others of a batch."""
    model = UniAD(**TINY, feature_norm="standard", post_processor=False).eval()
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images *= torch.linspace(0.2, 1, 6)[:, None, None, None]  # with statistics of their own
    with torch.no_grad():
        whole, backwards = model(images), model(images.flip(0))
        alone = torch.stack([model(image[None]).anomaly_map[0] for image in images])
        scores = torch.cat([model(image[None]).pred_score for image in images])
    assert whole.pred_score.std() > 0.01 * whole.pred_score.mean()
    torch.testing.assert_close(whole.anomaly_map, alone, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(whole.pred_score, scores, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(backwards.pred_score.flip(0), scores, rtol=ROUNDING, atol=0)


class Shuffled(MultiCategory):
    """Test images in another order."""

    def test_dataloader(self) -> Any:
        samples = self.test_data.samples
        self.test_data._samples = samples.sample(frac=1, random_state=0, ignore_index=True)  # which anomalib would sort
        return super().test_dataloader()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
def test_files_do_not_depend_on_the_batch(root: Path, tmp_path: Path) -> None:
    """Tests with batches of 1 and 5, in which products are mixed otherwise, and shuffled; the exported file."""
    model = UniAD(**TINY, product_calibration=True, feature_norm="standard")
    data = MultiCategory("MVTecAD", root, train_batch_size=3, eval_batch_size=4, num_workers=0)
    engine = quiet_engine(tmp_path / "fit", max_epochs=1)
    engine.fit(model=model, datamodule=data)
    tables, metrics = [], []
    for number, (kind, size) in enumerate([(MultiCategory, 1), (MultiCategory, 5), (Shuffled, 5)]):
        data = kind("MVTecAD", root, train_batch_size=3, eval_batch_size=size, num_workers=0)
        tester = quiet_engine(tmp_path / str(number))
        found = tester.test(
            model=UniAD(**TINY, product_calibration=True, feature_norm="standard"),
            datamodule=data,
            ckpt_path=engine.best_model_path,
        )
        with (Path(tester.trainer.default_root_dir) / "predictions.csv").open(newline="") as stream:
            tables.append({row["path"]: row for row in csv.DictReader(stream)})
        metrics.append(found[0])
    assert tables[0].keys() == tables[1].keys() == tables[2].keys()
    assert [*tables[1]] != [*tables[2]]
    assert len(tables[0]) == 12
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4, nan_ok=True)
    assert metrics[2] == pytest.approx(metrics[0], abs=1e-4, nan_ok=True)
    for row, other in [(row, table[path]) for table in tables[1:] for path, row in tables[0].items()]:
        assert row["decision"] == other["decision"]
        assert row["product"] == other["product"]
        assert float(row["raw_score"]) == pytest.approx(float(other["raw_score"]), rel=ROUNDING)

    file = model.eval().to_openvino(tmp_path)
    run = ov.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = np.random.default_rng(0).random((5, 3, 64, 64), np.float32) * np.linspace(0.2, 1, 5)[:, None, None, None]
    images = images.astype(np.float32)
    whole = run(images)["anomaly_map"].copy()
    for index, image in enumerate(images):
        np.testing.assert_allclose(run(image[None])["anomaly_map"][0], whole[index], rtol=0, atol=ROUNDING)
    inspector = Inspector(file)
    pixels = [(image.transpose(1, 2, 0) * 255).astype(np.uint8) for image in images]
    scores = [found.raw_score for found in inspector.inspect_batch(pixels)]
    assert [inspector.inspect(image).raw_score for image in pixels[::-1]] == scores[::-1]
