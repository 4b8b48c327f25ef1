# SPDX-License-Identifier: Apache-2.0
"""Validation images of `val_split_mode: mixed` are set aside from training and test images."""

from pathlib import Path

import pandas as pd
import pytest

from anomalib_uniad import MetaFile
from anomalib_uniad.data.make_meta import make_meta
from anomalib_uniad.splits import describe_validation, draw, drawn_without_seed, validates_test_images
from helpers import make_mvtec_like

SETS = ("train", "val", "test")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = make_mvtec_like(tmp_path_factory.mktemp("x") / "mine", ["nut"], (16, 16), train=10, good=5, bad=10)
    make_mvtec_like(root, ["ring"], (16, 16), train=3, good=2, bad=1, seed=9000)
    make_meta(root)
    return root


def split(datamodule) -> dict[str, pd.DataFrame]:
    datamodule.prepare_data()
    datamodule.setup()
    return {name: getattr(datamodule, f"{name}_data").samples for name in SETS}


def counts(samples: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Normal and defective images of each category."""
    return {
        name: ((rows.label_index == 0).sum(), (rows.label_index == 1).sum())
        for name, rows in samples.groupby("category")
    }


def datamodule(root: Path, **arguments):
    return MetaFile(root, num_workers=0, val_split_mode="mixed", **arguments)


@pytest.mark.parametrize("ratio", [None, 0.4])
def test_part_of_each_kind(root, ratio) -> None:
    module = datamodule(root, val_split_ratio=ratio)
    sets = split(module)
    if ratio is None:
        assert counts(sets["train"]) == {"nut": (8, 0), "ring": (2, 0)}
        assert counts(sets["val"]) == {"nut": (2 + 1, 2), "ring": (1 + 1, 0)}
        assert counts(sets["test"]) == {"nut": (4, 8), "ring": (1, 1)}
    else:
        assert counts(sets["val"]) == {"nut": (4 + 2, 4), "ring": (1 + 1, 0)}
    paths = [path for name in SETS for path in sets[name].image_path]
    assert sorted(paths) == sorted(str(path) for path in root.glob("*/t*/*/*.png"))
    of_training = ["/train/" in path for path in sets["val"].image_path]
    assert sum(of_training) == (3 if ratio is None else 5)
    assert describe_validation(module) == f"validation images (mixed, ratio {ratio or 0.2}, seed 0)"
    assert not validates_test_images(module)
    assert not drawn_without_seed(module)
    batch = next(iter(module.val_dataloader()))
    assert (batch.gt_mask.flatten(1).any(1) == batch.gt_label).all()


def test_the_same_seed_gives_the_same_split(root) -> None:
    def paths(seed: int | None) -> list[str]:
        return split(datamodule(root, seed=seed))["val"].image_path.tolist()

    assert paths(None) == paths(None) == paths(0)
    assert paths(7) == paths(7)
    assert len({tuple(paths(seed)) for seed in range(3)}) == 3


@pytest.mark.parametrize("count", range(9))
@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.5, 0.99])
def test_draw(count, ratio) -> None:
    drawn = draw(range(count), ratio, seed=3)
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(range(count))
    assert len(drawn) == (0 if count < 2 else min(max(round(count * ratio), 1), count - 1))
    assert drawn == draw(range(count), ratio, seed=3)
    assert len({tuple(draw(range(40), 0.5, seed)) for seed in (None, *range(5))}) == 5
