# SPDX-License-Identifier: Apache-2.0
"""Images that are held out to judge a training, and synthetic defects on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data.utils.generators import PerlinAnomalyGenerator

from anomalib_uniad import MultiCategory
from anomalib_uniad.training import held_out
from anomalib_uniad.training.held_out import SyntheticDefects, hold_out
from helpers import make_mvtec_like, write_image


def paths(data) -> set[str]:
    return set() if data is None else set(data.samples["image_path"])


@pytest.fixture(scope="module")
def mvtec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mvtec_like(tmp_path_factory.mktemp("mvtec"), ["bottle", "cable"], (16, 16), train=60)


def own(root: Path, **counts: int) -> MultiCategory:
    for number, (product, count) in enumerate(counts.items()):
        for image in range(count):
            write_image(root / product / "good" / f"{image}.png", (16, 16), 1000 * number + image)
        for image in range(5):
            write_image(root / product / "bad" / f"{image}.png", (16, 16), 1000 * number + 500 + image, defect=True)
    data = MultiCategory(root=root)
    data.setup()
    return data


def test_normal_validation_images_serve(tmp_path: Path) -> None:
    data = own(tmp_path, nut=80, bolt=40, few=6)  # 1 of 5 is tested, and 1 of 5 of the others is set aside
    held = hold_out(data, seed=0)
    assert held.training is None
    table = held.images.samples
    assert table.groupby(["category", "label_index"]).size().to_dict() == {
        ("nut", 0): 13 + 3, ("nut", 1): 16, ("bolt", 0): 6 + 2, ("bolt", 1): 8
    }  # fmt: skip
    assert held.available == 24
    assert not paths(held.images) & (paths(data.train_data) | paths(data.test_data))
    defective = data.val_data.samples.query("label_index == 1")["image_path"]
    assert not paths(held.images) & set(defective)


@pytest.mark.parametrize("mode", ["same_as_test", "none"])
def test_else_part_of_the_training_images(mvtec: Path, mode: str) -> None:
    data = MultiCategory("MVTecAD", mvtec, val_split_mode=mode)
    data.setup()
    held = hold_out(data, seed=3)
    assert held.images.samples["category"].value_counts().to_dict() == {"bottle": 24, "cable": 24}
    left = set(data.train_data.samples["image_path"].iloc[held.training])
    assert left | paths(held.images) == paths(data.train_data)
    assert not left & paths(held.images)
    assert not paths(held.images) & paths(data.test_data)
    assert paths(hold_out(data, seed=3).images) == paths(held.images) != paths(hold_out(data, seed=4).images)


def test_not_more_than_are_needed(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "MOST", 20)
    data = MultiCategory("MVTecAD", mvtec, val_split_mode="none")
    data.setup()
    held = hold_out(data, seed=0)
    assert (held.available, len(held.images), len(held.training)) == (20, 40, 100)


def test_too_few(tmp_path: Path) -> None:
    held = hold_out(own(tmp_path, nut=10, bolt=5), seed=0)
    assert (held.images, held.training, held.available) == (None, None, 3 + 1)


def test_defects_are_anomalibs(mvtec: Path) -> None:
    data = MultiCategory("MVTecAD", mvtec, val_split_mode="none")
    data.setup()
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    images = SyntheticDefects(data.train_data, [4, 7], ["bottle", "bottle"], seed=5)
    normal, painted = images[2], images[3]
    assert [item.gt_label.item() for item in (normal, painted)] == [0, 1]
    assert normal.image_path == painted.image_path == data.train_data.samples["image_path"][7]
    assert normal.image.equal(data.train_data[7].image)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])  # noqa: NPY002

    torch.manual_seed(int(np.random.SeedSequence((5, 1)).generate_state(1)[0]))
    noise, mask = PerlinAnomalyGenerator().generate_perturbation(16, 16, torch.device("cpu"))
    strength = torch.empty(()).uniform_(0.01, 0.2)
    noise, mask, plain = noise.permute(2, 0, 1), mask.permute(2, 0, 1), normal.image
    expected = plain * (1 - mask) + strength * noise + (1 - strength) * plain * mask
    torch.testing.assert_close(painted.image.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
    assert mask.any()
    assert images[3].image.equal(painted.image)


def test_large_images_are_painted_alike(tmp_path: Path) -> None:
    write_image(tmp_path / "nut" / "good" / "0.png", (300, 520))
    large = torch.full((3, 300, 520), 0.5)
    painted = held_out._paint(large, seed=1)
    changed = (painted != large).any(0)
    assert 0 < changed.float().mean() < 0.5
    assert changed.any(0).sum() >= 2  # pixels of the noise are two of the image
