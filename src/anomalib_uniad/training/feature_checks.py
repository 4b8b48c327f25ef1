# SPDX-License-Identifier: Apache-2.0
"""What a feature cache cannot work with, and whether there is room for it."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataset
from anomalib.data.datasets.base.depth import AnomalibDepthDataset
from anomalib.data.datasets.base.video import AnomalibVideoDataset
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.utils.data import DataLoader

from .feature_key import check_deterministic

_CONTAINER = Path("/sys/fs/cgroup")  # where Linux tells a container its limits
OFF = "Train without the cache (feature_cache=off)."
ADVICE = (
    "Halve it with feature_cache_dtype=float16, choose another directory with feature_cache_dir, delete caches with "
    "`anomalib-uniad cache clear`, keep the features in memory with feature_cache=memory, or set feature_cache=off."
)
ADVICE_MEMORY = (
    "Halve it with feature_cache_dtype=float16, use the disk with feature_cache=disk, or set feature_cache=off."
)


def check_model(model: Any) -> None:
    """Refuse models whose features can change, or that cannot extract them.

    Raises:
        ValueError: With what to do.
    """
    if not callable(getattr(model, "extract", None)) or not hasattr(model, "backbone"):
        msg = f"The feature cache needs a model with `backbone` and `extract`; {type(model).__name__} has not. {OFF}"
        raise ValueError(msg)
    if any(parameter.requires_grad for parameter in model.backbone.parameters()):
        msg = f"The backbone has trainable parameters, so its features change. Freeze it, or: {OFF}"
        raise ValueError(msg)


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that split a model over devices: no process could extract features alone.

    Raises:
        ValueError: With what to do.
    """
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        name = type(trainer.strategy).__name__
        msg = f"The feature cache works on one device and with DDP, not with {name}. {OFF}"
        raise ValueError(msg)


def active_pre_processor(trainer: Trainer, pl_module: LightningModule) -> PreProcessor | None:
    """Get the pre-processor if the trainer would run it.

    Raises:
        ValueError: If it does something else with batches than anomalib's.
    """
    found = getattr(pl_module, "pre_processor", None)
    if found is None or all(item is not found for item in trainer.callbacks):  # type: ignore[attr-defined]
        return None
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        if not isinstance(found, PreProcessor) or getattr(type(found), hook) is not getattr(PreProcessor, hook):
            msg = (
                f"The feature cache knows anomalib's PreProcessor, but {type(found).__name__} has its own {hook}. {OFF}"
            )
            raise ValueError(msg)
    check_deterministic(found.transform, "pre_processor")
    return found


def check_transfer(*owners: Any) -> None:
    """Refuse what changes batches on their way to the device, which the cache would not see.

    Args:
        *owners (Any): Datamodule and model.

    Raises:
        ValueError: With what to do.
    """
    for owner in owners:
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
            found = getattr(type(owner), hook, None)
            if found is not None and found is not getattr(DataHooks, hook):
                msg = (
                    f"{type(owner).__name__} has its own {hook}, which may change images in every epoch, and the "
                    f"feature cache would not see it. {OFF}"
                )
                raise ValueError(msg)


def check_dataset(dataset: Any, where: str) -> None:
    """Refuse datasets that give no images, or not always the same.

    Args:
        dataset (Any): Dataset of a dataloader.
        where (str): Which argument its augmentations come from.

    Raises:
        ValueError: With what to do.
    """
    if not isinstance(dataset, AnomalibDataset) or isinstance(dataset, (AnomalibDepthDataset, AnomalibVideoDataset)):
        msg = f"The feature cache needs an image dataset of anomalib, not {type(dataset).__name__}. {OFF}"
        raise ValueError(msg)
    reader = next(cls for cls in type(dataset).__mro__ if {"__getitem__", "__getitems__"} & vars(cls).keys())
    if reader.__module__.split(".")[0] not in {"anomalib", "anomalib_uniad"} and not hasattr(dataset, "content_key"):
        msg = (
            f"{reader.__qualname__} reads its items itself (__getitem__), and the feature cache cannot see what they "
            "depend on. If they are always the same, give the dataset an attribute content_key, a string that changes "
            f"with their contents. {OFF}"
        )
        raise ValueError(msg)
    check_deterministic(dataset.augmentations, where)


def check_loader(loader: Any) -> None:
    """Refuse dataloaders whose batches the cache cannot make.

    Raises:
        ValueError: With what to do.
    """
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        msg = f"The feature cache needs a torch DataLoader that makes batches, not {type(loader).__name__}. {OFF}"
        raise ValueError(msg)
    if loader.collate_fn != getattr(loader.dataset, "collate_fn", loader.collate_fn):
        name = getattr(loader.collate_fn, "__name__", type(loader.collate_fn).__name__)
        msg = f"The dataloader has its own collate_fn ({name}), which the feature cache cannot call. {OFF}"
        raise ValueError(msg)


def check_space(
    needed: int, shape: tuple[int, ...], dtype: str, free: int | None, place: str, say: Callable[[str], None]
) -> None:
    """Say how much room the features need, and refuse to begin if there is not enough.

    Args:
        needed (int): Bytes.
        shape (tuple[int, ...]): Shape of the features, images first.
        dtype (str): Their type.
        free (int | None): Bytes that there are, if known.
        place (str): Where: a directory, or "memory".
        say (Callable[[str], None]): Gets the message.

    Raises:
        OSError: If there is not enough room.
    """
    size = f"The features of {shape[0]} images, {'x'.join(map(str, shape[1:]))} {dtype}, need {gigabytes(needed)}"
    if free is not None and needed > free:
        msg = f"{size} in {place}, but there are only {gigabytes(free)}. "
        raise OSError(msg + (ADVICE_MEMORY if place.startswith("memory") else ADVICE))
    say(f"{size} in {place}{'' if free is None else f' (free: {gigabytes(free)})'}.")


def available_memory() -> int | None:
    """Bytes of memory that can be had without swapping; None if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    # Not sysconf's free pages: what files use as a cache can be had as well.
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # the limit of a container; the text "max" if it has none
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        with contextlib.suppress(OSError, ValueError):  # what files use as a cache can be had here, too
            counts = dict(line.split() for line in (_CONTAINER / "memory.stat").read_text().splitlines())
            used -= int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
        found.append(max(0, limit - max(0, used)))
    return min(found) if found else None


def fits_on_device(needed: int, free: int) -> bool:
    """Whether features may stay on the device: the training needs room too.

    Args:
        needed (int): Bytes of the features.
        free (int): Bytes that are free there.

    Example:
        >>> fits_on_device(4, free=8), fits_on_device(5, free=8)
        (True, False)
    """
    return needed <= free // 2


def gigabytes(size: int) -> str:
    """Write a number of bytes for people.

    Example:
        >>> gigabytes(1_500_000_000), gigabytes(2_000_000)
        ('1.50 GB', '2.0 MB')
    """
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
