# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import brute_force
from anomalib_uniad.metrics import functional, scores
from anomalib_uniad.metrics.scores import ScorePool


def maps_and_masks(count=4, size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    masks[1, 1:4, 2:5] = masks[1, 4:6, 5:8] = masks[2, 0, 0] = masks[2, 8:, 3:] = True  # two that touch at a corner
    return torch.rand(count, size, size, generator=generator), masks


@pytest.mark.parametrize("limit", [1 << 26, 100])  # bytes; the second goes to a file at once
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_pixels(limit, kind, monkeypatch):
    monkeypatch.setattr(scores, "_SPOOL_BYTES", limit)
    maps, masks = maps_and_masks()
    maps = maps.to(kind)
    pool = ScorePool()
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        pool.add_maps(maps[rows].unsqueeze(1), masks[rows])
    ranking = pool.rank()
    pool.clear()
    assert (pool.positives, pool.negatives) == (int(masks.sum()), int((~masks).sum()))
    expected = roc_auc_score(masks.ravel(), maps.double().ravel())
    assert functional.auroc(ranking) == pytest.approx(expected, abs=1e-9)
    assert ranking.overlap[-1] == pytest.approx(3), "regions"
    expected = brute_force.aupro(maps.double().numpy(), masks.numpy(), 0.3)
    assert functional.aupro(ranking) == pytest.approx(expected, abs=1e-4)


def test_double_precision_is_kept():
    pool = ScorePool()
    pool.add(torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64), torch.tensor([0, 1]))
    assert functional.auroc(pool.rank()) == 1.0


def test_nan_and_infinity():
    pool = ScorePool()
    pool.add(torch.tensor([float("inf"), float("-inf"), 0.0]), torch.tensor([1, 0, 0]))
    assert not pool.has_nan
    assert functional.auroc(pool.rank()) == 1.0
    pool.add(torch.tensor([float("nan")]), torch.tensor([0]))
    assert pool.has_nan


def test_nothing():
    ranking = ScorePool().rank()
    assert (ranking.positives, ranking.negatives) == (0, 0)
    assert np.isnan(ranking.highest)
    pool = ScorePool()
    pool.add(torch.ones(2, 1), torch.zeros(2))
    assert pool.rank().negatives == 2
