# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from anomalib_uniad.inference.score import score_map
from anomalib_uniad.model.anomaly_map import AnomalyScore


@pytest.mark.parametrize("reduction", ["max", "top", "mean", "std"])
@pytest.mark.parametrize("part", ["all", "box", "scattered"])
def test_the_score_is_that_of_torch(reduction: str, part: str) -> None:
    generator = np.random.default_rng(0)
    for size, pool, top in (((40, 56), 16, 0.02), ((33, 21), 5, 0.1), ((16, 16), 16, 1e-4)):
        values = generator.gamma(2.0, 3.0, size).astype(np.float32)
        inside = np.ones(size, bool)
        if part == "box":
            inside[: size[0] // 3] = inside[:, -5:] = False
        elif part == "scattered":
            inside = generator.random(size) < 0.4
        filled = np.where(inside, values, values[inside].min())  # as AnomalyMap does it with padding
        covered = None if part == "all" else torch.from_numpy(inside)[None, None]
        wanted = AnomalyScore(reduction, pool, top)(torch.from_numpy(filled)[None, None], covered)
        assert score_map(values, inside, reduction, pool, top) == pytest.approx(float(wanted), abs=1e-4)


def test_the_pooled_maximum_by_brute_force() -> None:
    values = np.random.default_rng(1).random((12, 9))
    inside = np.zeros((12, 9), bool)
    inside[2:8, 1:7] = True
    filled = np.where(inside, values, values[inside].min())
    wanted = max(filled[row : row + 4, column : column + 4].mean() for row in range(9) for column in range(6))
    assert score_map(values, inside, "max", 4) == pytest.approx(wanted)
