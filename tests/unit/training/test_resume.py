# SPDX-License-Identifier: Apache-2.0
"""The parts of exact resumption: order, seeds, dataloader, and what is left alone."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from anomalib_uniad.training.exact_loader import ExactLoader, ExactSampler, can_be_exact, mix_seed
from anomalib_uniad.training.resume import ExactResume
from anomalib_uniad.training.resume_checkpoint import ResumeCheckpoint


class Noisy(Dataset):
    """Items with the random numbers that an augmentation might draw."""

    name = "noisy"

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, float, float]:
        return index, torch.rand(2), np.random.rand(), random.random()  # noqa: NPY002


class AtOnce(Noisy):
    def __getitems__(self, indices: list[int]) -> list:
        noise = torch.rand(2)
        return [(index, noise, 0.0, 0.0) for index in indices]


def exact(loader: DataLoader, seed: int = 0, num_replicas: int = 1, rank: int = 0) -> ExactLoader:
    return ExactLoader.like(loader, seed, num_replicas, rank, position=lambda: {"epoch": 4, "batch": 2})


def contents(loader: DataLoader, epoch: int = 0) -> list[list[torch.Tensor]]:
    loader.sampler.set_epoch(epoch)
    return [[torch.as_tensor(part) for part in batch] for batch in loader]


def equal(first: list[list[torch.Tensor]], second: list[list[torch.Tensor]]) -> bool:
    return len(first) == len(second) and all(
        a.equal(b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_mixed_seeds() -> None:
    seeds = {mix_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert min(seeds).bit_length() > 32 or max(seeds).bit_length() == 63


def test_order_depends_on_seed_and_epoch() -> None:
    loader = DataLoader(Noisy(), batch_size=3, shuffle=True)
    first = contents(exact(loader))
    torch.manual_seed(1)
    assert equal(contents(exact(loader)), first)
    others = [contents(exact(loader, seed=1)), contents(exact(loader), epoch=1)]
    for other in others:
        assert sorted(torch.cat([batch[0] for batch in other]).tolist()) == list(range(7))
        assert not equal(other, first)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Noisy(), AtOnce()])
def test_goes_on_with_the_same_random_numbers(dataset: Dataset, workers: int) -> None:
    whole = contents(exact(DataLoader(dataset, batch_size=2, shuffle=True)), epoch=3)
    loader = exact(DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers))
    loader.load_state_dict({"epoch": 3, "batch": 2})
    iterator = iter(loader)  # Lightning asks for it before it tells the epoch
    loader.sampler.set_epoch(3)
    assert equal([[torch.as_tensor(part) for part in batch] for batch in iterator], whole[2:])
    assert len(loader) == 4
    assert equal(contents(loader, epoch=3), whole), "only once"


def test_another_epoch_is_not_shortened() -> None:
    loader = exact(DataLoader(Noisy(), batch_size=2, shuffle=True))
    loader.load_state_dict({"epoch": 1, "batch": 4})
    assert len(contents(loader, epoch=2)) == 4
    assert len(contents(loader, epoch=1)) == 0


def test_processes_share_the_images() -> None:
    samplers = [ExactSampler(Noisy(), 2, seed=0, num_replicas=2, rank=rank) for rank in range(2)]
    pairs = [list(sampler) for sampler in samplers]
    assert {index for part in pairs for _, index in part} == set(range(7))
    assert {seed for seed, _ in pairs[0]}.isdisjoint(seed for seed, _ in pairs[1])


def test_settings_stay() -> None:
    loader = DataLoader(Noisy(), 3, True, num_workers=1, drop_last=True, timeout=9, prefetch_factor=3)
    changed = exact(loader)
    for name in ("batch_size", "num_workers", "drop_last", "timeout", "prefetch_factor", "persistent_workers"):
        assert getattr(changed, name) == getattr(loader, name)
    assert changed.collate_fn is loader.collate_fn
    assert len(changed) == len(loader) == 2
    assert len(changed.dataset) == 7
    assert changed.dataset.name == "noisy"
    assert changed.dataset[5][0] == 5
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = changed.dataset.nothing


def test_order_takes_nothing_from_the_global_generator() -> None:
    loader = exact(DataLoader(Noisy(), batch_size=7, shuffle=True, num_workers=1))
    state = torch.get_rng_state()
    contents(loader)
    assert torch.get_rng_state().equal(state)


class Own(DataLoader):
    pass


@pytest.mark.parametrize(
    "loader",
    [
        [1, 2],
        Own(Noisy(), shuffle=True),
        DataLoader(Noisy()),
        DataLoader(Noisy(), batch_size=None, shuffle=True),
        DataLoader(Noisy(), shuffle=True, generator=torch.Generator()),
        DataLoader(Noisy(), sampler=RandomSampler(Noisy(), replacement=True)),
        DataLoader(Noisy(), sampler=RandomSampler(Noisy(), num_samples=3)),
        DataLoader(Noisy(), batch_sampler=type("B", (BatchSampler,), {})(SequentialSampler(Noisy()), 2, False)),
    ],
)
def test_other_loaders_are_left_alone(loader) -> None:
    assert not can_be_exact(loader)
    assert can_be_exact(DataLoader(Noisy(), shuffle=True))


@pytest.mark.parametrize("arguments", [{}, {"overfit_batches": 1}, {"use_distributed_sampler": False}])
def test_takes_the_place_of_the_dataloader_for_the_training(arguments: dict) -> None:
    datamodule = LightningDataModule()
    datamodule.train_dataloader = loader = lambda: DataLoader(Noisy(), shuffle=True)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **arguments)
    trainer.datamodule = datamodule
    callback = ExactResume(seed=3)
    for take_off in (
        lambda: callback.on_fit_end(trainer, None),
        lambda: callback.teardown(trainer, None, "fit"),
        lambda: callback.on_exception(trainer, None, ValueError()),
    ):
        callback.setup(trainer, None, "test")
        assert datamodule.train_dataloader is loader
        callback.setup(trainer, None, "fit")
        assert isinstance(datamodule.train_dataloader(), ExactLoader) == (not arguments)
        take_off()
        assert datamodule.train_dataloader is loader


def test_seed_of_the_checkpoint() -> None:
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    first, again, given = ExactResume(), ExactResume(), ExactResume(seed=8)
    for callback in (first, again, given):
        callback.setup(trainer, None, "fit")
    assert first.state_dict()["seed"] != again.state_dict()["seed"]
    for callback in (again, given):
        callback.load_state_dict(first.state_dict())
    assert again.state_dict() == first.state_dict()
    assert given.state_dict()["seed"] == 8


def test_steps_are_seeded() -> None:
    callback = ExactResume(seed=1)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    callback.setup(trainer, None, "fit")
    drawn = []
    for batch in (0, 1, 0):
        callback.on_train_batch_start(trainer, None, None, batch)
        drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[2] != drawn[1]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0 or None, got -1"):
        ExactResume(seed=-1)
    for wrong in (0, -1.5, float("nan")):
        with pytest.raises(ValueError, match=f"greater than 0, got {wrong}"):
            ResumeCheckpoint(wrong)


def test_a_file_that_cannot_be_completed_leaves_the_last_one(tmp_path: Path) -> None:
    class Full(SimpleNamespace):
        def save_checkpoint(self, path: Path, weights_only: bool) -> None:
            path.write_text("half")
            raise OSError("No space left on device")

    callback = ResumeCheckpoint()
    callback._path = tmp_path / "resume.ckpt"
    callback._path.write_text("whole")
    with pytest.raises(OSError, match="No space left"):
        callback._write(Full(is_global_zero=True))
    assert callback._path.read_text() == "whole"
