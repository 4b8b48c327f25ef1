# SPDX-License-Identifier: Apache-2.0
"""Wrappers around a datamodule's dataloaders."""

import itertools

import pytest
from lightning.pytorch import LightningDataModule

from anomalib_uniad.training.dataloaders import wrap_dataloader


class Data(LightningDataModule):
    def train_dataloader(self) -> list[str]:
        return ["images"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_wrappers_come_off_in_any_order(order: tuple[int, ...]) -> None:
    datamodule = Data()
    unwrap = [
        wrap_dataloader(datamodule, "train_dataloader", lambda result, word=word: [*result, word]) for word in "abc"
    ]
    assert datamodule.train_dataloader() == ["images", "a", "b", "c"]
    left = ["a", "b", "c"]
    for index in order:
        unwrap[index]()
        unwrap[index]()
        left.remove("abc"[index])
        assert datamodule.train_dataloader() == ["images", *left]
    assert "train_dataloader" not in vars(datamodule)
    wrap_dataloader(datamodule, "train_dataloader", lambda result: [*result, "again"])
    unwrap[0]()
    assert datamodule.train_dataloader() == ["images", "again"]


def test_own_dataloader_of_an_instance_comes_back() -> None:
    datamodule = Data()
    datamodule.train_dataloader = lambda: ["own"]
    unwrap = wrap_dataloader(datamodule, "train_dataloader", lambda result: [*result, "wrapped"])
    assert datamodule.train_dataloader() == ["own", "wrapped"]
    unwrap()
    assert datamodule.train_dataloader() == ["own"]
