# SPDX-License-Identifier: Apache-2.0
"""What thresholds are from is not what is decided about."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from decisions import CHANGES, VALIDATIONS, as_jpeg, decide, draw, one_for_all, one_for_each, write_recognition

COUNTS = {("training", False): 30, ("validation", False): 8, ("validation", True): 4, ("test", False): 12}
COUNTS[("test", True)] = 10
COUNTED = {
    "good and defective": (8, 4),
    "good alone": (8, 0),
    "3 good of each": (3, 0),
    "none": (0, 0),
}


@pytest.fixture
def table() -> pd.DataFrame:
    random, rows = np.random.default_rng(0), []
    for number, category in enumerate(("nut", "bolt")):
        for (split, defective), count in COUNTS.items():
            pooled = random.normal(8 * number, 1, (count, 3))
            pooled[:, 2] += 40 * defective
            scores = random.lognormal(number + 2 * defective, 0.2, count)
            rows += [
                {
                    "category": category,
                    "split": split,
                    "defective": defective,
                    "score": score,
                    "pooled": features,
                    **{name: features + 40 * (name == "as JPEG") for name in CHANGES},
                }
                for score, features in zip(scores, pooled.astype(np.float32), strict=True)
            ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("validation", COUNTED)
def test_draws(table: pd.DataFrame, validation: str) -> None:
    assert set(COUNTED) < set(VALIDATIONS)
    for seed in range(3):
        known, rest = draw(table, ["nut", "bolt"], validation, seed)
        for name in ("nut", "bolt"):
            unseen = table[(table["category"] == name) & (table["split"] != "training")]
            good, defective = rest[name]
            assert (len(known[name].good), len(known[name].defective)) == COUNTED[validation]
            assert (len(good), len(defective)) == (12, 10)
            seen, tested = [*known[name].good, *known[name].defective], [*good["score"], *defective["score"]]
            assert not {*seen} & {*tested}
            assert {*seen, *tested} <= {*unseen["score"]}


def test_shares_and_rules(table: pd.DataFrame) -> None:
    good = pd.DataFrame({"score": [1.0, 2.0, 3.0, 0.5], "recognised": ["nut", "nut", "bolt", ""], "category": "nut"})
    defective = pd.DataFrame({"score": [2.0, 2.5], "recognised": ["nut", "bolt"], "category": "nut"})
    thresholds = {"nut": 2.0, "bolt": np.nan}
    told, recognised = (decide(thresholds, good, defective, told=told) for told in (True, False))
    assert (told["false_alarms"], told["missed"], told["undecided"]) == (0.25, 0.5, 0)
    assert (recognised["false_alarms"], recognised["missed"]) == (0.25, 0.5)  # what shows no product is stopped
    assert recognised["undecided"] == pytest.approx(2 / 6)
    known, _ = draw(table, ["nut", "bolt"], "good alone", 0)
    assert one_for_all(known) == dict.fromkeys(known, max(scores.good.max() for scores in known.values()))
    assert one_for_each(known) == {name: scores.good.max() for name, scores in known.items()}


def test_recognition(table: pd.DataFrame, tmp_path: Path) -> None:
    write_recognition(table, {"dataset": "made", "seed": 0}, tmp_path)
    rows = pd.read_csv(tmp_path / "recognition.csv").set_index("category")
    assert (rows["images"] == 34).all()
    assert (rows.loc[:, ["recognised", "defects_called_unknown", "found_unknown"]].loc["bolt"] > 0.9).all()
    assert (rows[["good_called_unknown", "good_called_unknown_with noise"]] < 0.1).all(axis=None)
    assert (rows["good_called_unknown_as JPEG"] == 1).all()


def test_jpeg_is_nearly_the_image() -> None:
    shades = torch.linspace(0, 1, 64).expand(2, 3, 64, 64)
    changed = as_jpeg(shades)
    assert changed.shape == shades.shape
    assert 0 < (changed - shades).abs().max() < 0.05
