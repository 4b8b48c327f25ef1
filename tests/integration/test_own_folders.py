# SPDX-License-Identifier: Apache-2.0
"""Own folders in all layouts, trained for one step and predicted."""

from pathlib import Path

import pandas as pd
import pytest

from anomalib_uniad import MultiCategory, UniAD
from helpers import make_mvtec_like, write_image, write_mask
from small import SMALL, quiet_engine

KINDS = {  # product -> folder and type of good, of defective images, of masks
    "good and bad": ("good", "bad", "masks", "jpg"),
    "Größe 1": ("Normal", "Abnormal", "", "BMP"),
    "件": ("OK", "NG/kratzer", "gt/kratzer", "Tif"),
    "only good": ("ok", "", "", "webp"),
    "flat": ("", "", "", "pgm"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = make_mvtec_like(tmp_path_factory.mktemp("data") / "Mine", ["mvtec"], train=4, good=2, bad=2)
    for index, (name, (good, bad, masks, suffix)) in enumerate(KINDS.items()):
        for number in range(4):
            write_image(root / name / good / f"{number}.{suffix}", (40, 72), 10 * index + number)
        for number in range(2 if bad else 0):
            mask = write_image(root / name / bad / f"d{number}.{suffix}", (40, 72), 10 * index + 5 + number, True)
            if masks:
                write_mask(root / name / masks / f"d{number}.png", mask)
    return root


@pytest.mark.filterwarnings("ignore:.*")  # Lightning's about small sets
def test_trained_and_tested(root, tmp_path) -> None:
    datamodule = MultiCategory(root=root, num_workers=0, train_batch_size=16, eval_batch_size=8)
    runner = quiet_engine(tmp_path, max_steps=1)
    runner.fit(UniAD(**SMALL), datamodule=datamodule)
    again = MultiCategory(root=root, num_workers=0, eval_batch_size=8)
    engine = quiet_engine(tmp_path / "test")
    (results,) = engine.test(UniAD(**SMALL), datamodule=again, ckpt_path=runner.best_model_path)
    assert again.test_data.samples.image_path.tolist() == datamodule.test_data.samples.image_path.tolist()
    with_masks = {"mvtec", "good and bad", "件"}
    assert {name.partition("/")[2] for name in results if name.startswith("pixel_AUROC/")} == with_masks
    assert {name.partition("/")[2] for name in results if name.startswith("image_AUROC/")} == {*with_masks, "Größe 1"}
    (table,) = tmp_path.glob("test/**/predictions.csv")
    rows = pd.read_csv(table)
    assert sorted(rows.path) == sorted(again.test_data.samples.image_path)
    assert set(rows.category) == set(again.categories) == {"mvtec", *KINDS}
    assert rows.raw_score.notna().all()
    heatmaps = list(tmp_path.glob("test/**/images/**/*.*"))
    assert len(heatmaps) == len(rows)
