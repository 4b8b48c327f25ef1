# SPDX-License-Identifier: Apache-2.0
"""Trains from features that are computed once instead of from images."""

import errno
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn
from torch.utils.data import DataLoader

from . import feature_checks as checks
from .cached_dataset import CachedDataset, cached_dataloader, paths_of
from .dataloaders import wrap_dataloader
from .feature_build import FeatureBuilder, FeatureDtype, MemoryWriter
from .feature_files import CacheWriter
from .feature_key import describe_extractor, describe_files, digest_of, key_of, key_parts
from .feature_store import FeatureStore


class FeatureCache(Callback):
    """Trains and validates a model with a frozen backbone from features that are computed once.

    At the first request for a dataloader, the images are read, transformed and embedded; from then on batches are
    :class:`~anomalib_uniad.training.cached_dataset.CachedBatch`, which bring their features. Order of the images and
    random numbers are those of a training without the cache. Tests and predictions read images as always.

    Args:
        mode (str): ``"memory"`` keeps features for one training. ``"disk"`` keeps them in files, which later trainings
            with the same images, transforms and backbone use; see ``anomalib-uniad cache``.
        dtype (str): ``"float32"``, or ``"float16"`` for half the space. Defaults to ``"float32"``.
        directory (str | Path | None): Directory of the files; ``None`` is ``anomalib-uniad/features`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``. Defaults to ``None``.

    Raises:
        ValueError: If ``mode`` or ``dtype`` is something else. When a training starts, if the features of an image
            could change from epoch to epoch, or if something in it cannot work with the cache.
        OSError: When a training starts, if there is not enough space.

    Example:
        >>> FeatureCache("disk", dtype="float16", directory="features").store.entries()
        []
    """

    def __init__(
        self,
        mode: Literal["memory", "disk"],
        dtype: FeatureDtype = "float32",
        directory: str | Path | None = None,
    ) -> None:
        if mode not in {"memory", "disk"}:
            msg = f"The mode of the feature cache must be 'memory' or 'disk', got {mode!r}."
            raise ValueError(msg)
        if dtype not in {"float32", "float16"}:
            msg = f"The dtype of the feature cache must be 'float32' or 'float16', got {dtype!r}."
            raise ValueError(msg)
        self.mode = mode
        self.dtype: FeatureDtype = dtype
        self.store = FeatureStore(directory)
        self._undo: list[Callable[[], None]] = []
        self._pre_processor: PreProcessor | None = None
        self._datasets: dict[str, CachedDataset] = {}  # by key
        self._weights: str | None = None
        self._session: object | None = None  # the training that runs now

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of the dataloaders and of the pre-processor for the time of a training."""
        if stage != "fit":
            return
        self._restore()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info("fast_dev_run: images are read as they are needed, no feature cache is built.")
            return
        datamodule = _datamodule(trainer)
        if datamodule is None:
            msg = f"The feature cache works with datamodules: give the trainer one instead of dataloaders. {checks.OFF}"
            raise ValueError(msg)
        # At once, before long work; what is checked again later may not be there yet.
        checks.check_model(_model(pl_module))
        checks.check_strategy(trainer)
        checks.check_transfer(datamodule, pl_module)
        pre_processor = checks.active_pre_processor(trainer, pl_module)
        for name in ("train", "val"):
            if hasattr(datamodule, f"{name}_data"):
                checks.check_dataset(getattr(datamodule, f"{name}_data"), f"{name}_augmentations")

        self._pre_processor = pre_processor
        if pre_processor is not None:
            # Images are transformed when the cache is built. A new list: Lightning is going through the old one.
            callbacks = _callbacks(trainer)
            position = [item is pre_processor for item in callbacks].index(True)
            _set_callbacks(trainer, callbacks[:position] + callbacks[position + 1 :])
            self._undo.append(partial(_put_back, trainer, position, pre_processor))
        session = self._session = object()
        for name, evaluation in (("train", False), ("val", True)):
            wrap = partial(self._wrap, session, trainer, pl_module, evaluation)
            self._undo.append(wrap_dataloader(datamodule, f"{name}_dataloader", wrap))
        # Lightning's advice to have more workers, where none have anything to do.
        filters = list(warnings.filters)
        warnings.filterwarnings("ignore", ".*(train|val)_dataloader' does not have many workers")
        self._undo.append(partial(_restore_filters, filters))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that the weights are those from which the features were computed.

        Raises:
            RuntimeError: If they are not.
        """
        del trainer
        if self._weights is not None:
            self._check_weights(describe_extractor(_model(pl_module))["weights"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave everything as it was before the training."""
        del trainer, pl_module, stage
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave everything as it was before the training."""
        del trainer, pl_module, exception
        self._restore()

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()
        for dataset in self._datasets.values():
            dataset.release()
        self._datasets = {}
        self._pre_processor = self._weights = self._session = None

    def _wrap(
        self, session: object, trainer: Trainer, pl_module: LightningModule, evaluation: bool, loaders: Any
    ) -> Any:
        if session is not self._session:  # the training is over, but another wrapper kept this one on
            return loaders
        datamodule = _datamodule(trainer)
        if not evaluation and trainer.enable_validation and len(getattr(datamodule, "val_data", ())):
            # Now, not when the first epoch is validated: what cannot be cached is refused before long work starts.
            datamodule.val_dataloader()
        if isinstance(loaders, (list, tuple)):
            return [self._wrap_one(trainer, pl_module, evaluation, loader) for loader in loaders]
        return self._wrap_one(trainer, pl_module, evaluation, loaders)

    def _wrap_one(self, trainer: Trainer, pl_module: LightningModule, evaluation: bool, loader: Any) -> DataLoader:
        checks.check_loader(loader)
        source: Any = loader.dataset
        checks.check_dataset(source, "val_augmentations" if evaluation else "train_augmentations")
        if len(source) == 0:
            return loader
        builder = FeatureBuilder(
            dataset=source,
            transform=None if self._pre_processor is None else self._pre_processor.transform,
            model=_model(pl_module),
            device=pl_module.device,
            dtype=self.dtype,
            # A training needs no masks, and a dataset without them (classification) has none to give.
            masks=evaluation and source.samples.attrs.get("task") == "segmentation",
            num_workers=loader.num_workers,
            progress=trainer.progress_bar_callback is not None,
            after_batch=partial(_stop_if_told, trainer),
        )
        parts = key_parts(
            source, builder.transform, builder.model, self.dtype, builder.device.type, masks=builder.masks
        )
        self._check_weights(parts["extractor"]["weights"])
        key = key_of(parts)
        if key not in self._datasets:
            name = getattr(_datamodule(trainer), "name", None) or source.name
            meta = {
                "key": key,
                "dataset": f"{name}, {'validation' if evaluation else 'training'}",
                "images": len(source),
                "backbone": parts["extractor"]["backbone"],
                "made_of": parts,
            }
            arrays = self._arrays(builder, meta, trainer.num_devices)
            self._datasets[key] = CachedDataset.place(arrays, *paths_of(source), device=builder.device)
        return cached_dataloader(self._datasets[key], loader)

    def _arrays(self, builder: FeatureBuilder, meta: dict[str, Any], processes: int) -> dict[str, np.ndarray]:
        """Open the cache, or build it. With several processes, one builds and the others wait for its lock."""
        # Synthetic anomalies are drawn anew for each training: files of them would never be used again.
        if self.mode == "memory" or isinstance(builder.dataset, SyntheticAnomalyDataset):
            memory = MemoryWriter()
            place = "memory" if processes == 1 else f"memory of each of {processes} processes"
            builder.build(memory, partial(self._check_space, partial(_part_of_memory, processes), place))
            return self._announce(meta, memory.arrays, "built now, in memory")

        def build(writer: CacheWriter) -> None:
            builder.build(writer, partial(self._check_space, self.store.free, str(self.store.directory)))
            files = describe_files(builder.dataset, builder.masks)
            if digest_of(files) != meta["made_of"]["files"]:
                msg = f"Images of {meta['dataset']} changed while their features were computed. Start again."
                raise RuntimeError(msg)
            writer.finish(meta)

        try:
            arrays, how = self.store.obtain(meta["key"], build, rank_zero_info)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            msg = f"The disk of {str(self.store.directory)!r} became full. {checks.ADVICE}"
            raise OSError(msg) from error
        return self._announce(meta, arrays, how)

    def _check_weights(self, digest: str) -> None:
        if self._weights not in {None, digest}:
            msg = (
                "The backbone's weights changed after the features were computed. Load weights before the training "
                f"starts. {checks.OFF}"
            )
            raise RuntimeError(msg)
        self._weights = digest

    def _check_space(self, free: Callable[[], int | None], place: str, needed: int, shape: tuple[int, ...]) -> None:
        checks.check_space(needed, shape, self.dtype, free(), place, rank_zero_info)

    @staticmethod
    def _announce(meta: dict[str, Any], arrays: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
        size = checks.gigabytes(sum(array.nbytes for array in arrays.values()))
        rank_zero_info(
            f"Features of {meta['dataset']} from cache {meta['key']} ({meta['images']} images, {size}), {how}."
        )
        return arrays


def _part_of_memory(processes: int) -> int | None:
    available = checks.available_memory()
    return None if available is None else available // processes


def _stop_if_told(trainer: Any) -> None:
    """Lightning has noted SIGTERM, but looks at it only between training steps."""
    if trainer.received_sigterm:
        raise SIGTERMException


def _restore_filters(filters: list[Any]) -> None:
    warnings.filters[:] = filters  # type: ignore[index]


def _put_back(trainer: Trainer, position: int, callback: Callback) -> None:
    callbacks = _callbacks(trainer)
    if all(item is not callback for item in callbacks):
        _set_callbacks(trainer, [*callbacks[:position], callback, *callbacks[position:]])


# Lightning's Trainer has these attributes, but does not declare them.
def _callbacks(trainer: Any) -> list[Callback]:
    return list(trainer.callbacks)


def _set_callbacks(trainer: Any, callbacks: list[Callback]) -> None:
    trainer.callbacks = callbacks


def _datamodule(trainer: Any) -> Any:
    return trainer.datamodule


def _model(pl_module: LightningModule) -> nn.Module:
    return cast("nn.Module", pl_module.model)
