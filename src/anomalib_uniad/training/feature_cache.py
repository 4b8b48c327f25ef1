# SPDX-License-Identifier: Apache-2.0
"""Trains from features that are computed once instead of from images."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from anomalib.data import AnomalibDataset, ImageBatch
from anomalib.data.datasets.base.depth import AnomalibDepthDataset
from anomalib.data.datasets.base.video import AnomalibVideoDataset
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from anomalib_uniad.category import categories_of
from anomalib_uniad.checks import check_choice
from anomalib_uniad.errors import DiskError, InputError
from anomalib_uniad.files import FULL
from anomalib_uniad.transforms import ResizeEach

from .cached_dataset import CachedBatch, CachedDataset, CachedPart, FeatureDtype, compute_features
from .copies import Copies, ImageCopy, check_copies, copies_of
from .feature_key import check_deterministic, describe_files, digest_of, digest_weights, key_of, key_parts
from .feature_statistics import shares_of_products
from .feature_store import CacheWriter, FeatureStore, MemoryWriter
from .space import gigabytes, on_same_disk, space_of_run

ProductSampling = Literal["uniform", "variance"]
_CONTAINER = Path("/sys/fs/cgroup")  # where Linux tells a container its limits
_OFF = "Train without the cache (feature_cache=off)."
_ADVICE = (
    "Halve it with feature_cache_dtype=float16, choose another directory with feature_cache_dir, delete caches with "
    "`anomalib-uniad cache clear`, keep the features in memory with feature_cache=memory, or set feature_cache=off."
)
_ADVICE_MEMORY = (
    "Halve it with feature_cache_dtype=float16, use the disk with feature_cache=disk, or set feature_cache=off."
)


class FeatureCache(Callback):
    """Trains and validates a model with a frozen backbone from features that are computed once.

    For the time of a training, ``train_data`` and ``val_data`` of the datamodule are a
    :class:`~anomalib_uniad.training.cached_dataset.CachedDataset`, so that its own dataloaders give batches of
    features; its ``num_workers`` is 0, as there is nothing to decode. When the training starts, the images are read,
    transformed and embedded. Unless products are sampled, order of the images and random numbers are those of a
    training without the cache. Tests and predictions read images as always.

    Each product, and each kind of copy of it, is a cache of its own, so that a training with other copies or one more
    product finds the others again.

    Args:
        mode (str): ``"memory"`` keeps features for one training. ``"disk"`` keeps them in files, which later trainings
            with the same images, transforms and backbone use; see ``anomalib-uniad cache``.
        dtype (str): ``"float32"``, or ``"float16"`` for half the space. Defaults to ``"float32"``.
        directory (str | Path | None): Directory of the files; ``None`` is ``anomalib-uniad/features`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``. Defaults to ``None``.
        copies (Copies | None): Augmented copies of the training images, for all products or as a mapping of products
            to lists, see :class:`~anomalib_uniad.training.copies.ImageCopy`; each epoch draws one version of each
            image. Defaults to ``None``.
        product_sampling (str): ``"uniform"`` draws each image once in an epoch. ``"variance"`` draws as many images in
            an epoch, of several products, the more often of one the more its images differ, see
            :func:`~anomalib_uniad.training.feature_statistics.shares_of_products`. Defaults to ``"uniform"``.

    Raises:
        ValueError: If one of these is something else. When a training starts, if the features of an image could
            change from epoch to epoch, or if something in it cannot work with the cache.
        OSError: When a training starts, if there is not enough space.

    Examples:
        >>> FeatureCache("disk", dtype="float16", directory="features").store.entries()
        []
    """

    def __init__(
        self,
        mode: Literal["memory", "disk"],
        dtype: FeatureDtype = "float32",
        directory: str | Path | None = None,
        copies: Copies | None = None,
        product_sampling: ProductSampling = "uniform",
    ) -> None:
        check_choice("product_sampling", product_sampling, get_args(ProductSampling))
        check_choice("mode", mode, ("memory", "disk"))
        check_choice("dtype", dtype, get_args(FeatureDtype))
        self.mode = mode
        self.dtype: FeatureDtype = dtype
        self.store = FeatureStore(directory)
        self.copies = check_copies(copies)
        self.product_sampling: ProductSampling = product_sampling
        self._datasets: dict[str, CachedDataset] = {}  # "validation" and "training"
        self._transform: Any = None  # of the pre-processor
        self._num_workers = 0
        self._weights = ""  # digest of the backbone's, once features are computed
        self._undo = contextlib.ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put cached datasets, which are still empty, in the place of the datamodule's."""
        if stage != "fit":
            return
        self._restore()
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info("fast_dev_run: images are read as they are needed, no feature cache is built.")
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(datamodule, "train_data"):
            raise InputError(
                "The feature cache works with anomalib's datamodules: give the trainer one instead of dataloaders. "
                f"{_OFF}"
            )
        check_model(pl_module.model)
        check_strategy(trainer)
        check_transfer(datamodule, pl_module)
        self._transform = transform_of_images(trainer, pl_module)
        self._num_workers = getattr(datamodule, "num_workers", 0)
        # Validation first: what does not fit is refused before long work starts.
        stages = {"validation": "val", "training": "train"} if trainer.enable_validation else {"training": "train"}
        self._replace(datamodule, "num_workers", 0)
        if isinstance(getattr(datamodule, "external_collate_fn", None), ResizeEach):  # as features are computed
            datamodule.external_collate_fn = None
        for stage_name, prefix in stages.items():
            images = getattr(datamodule, f"{prefix}_data", None)
            if images is not None and len(images):
                check_dataset(images, f"{prefix}_augmentations")
                dataset = self._datasets[stage_name] = CachedDataset(images)
                self._replace(datamodule, f"{prefix}_data", dataset)
                check_loader(getattr(datamodule, f"{prefix}_dataloader")(), dataset)
        if (training := self._datasets.get("training")) is not None:
            check_products(self.copies, rows_of_products(training.source, datamodule))
        # Lightning's advice to have more workers, where none have anything to do.
        warnings.filterwarnings("ignore", ".*(train|val)_dataloader' does not have many workers")
        self._undo.callback(_remove_filter, warnings.filters[0])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the features, or open their files: weights of a checkpoint are loaded now, and on their device."""
        for stage, dataset in self._datasets.items():
            dataset.fill(self._parts(trainer, pl_module, stage, dataset.source), pl_module.device)
            if stage == "training" and self.product_sampling == "variance":
                sample_by_variance(dataset, rows_of_products(dataset.source, trainer.datamodule))  # type: ignore[attr-defined]
        if self._datasets:
            self._weights = digest_weights(pl_module.model.backbone)  # type: ignore[union-attr, arg-type]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that the weights are those from which the features were computed.

        Raises:
            RuntimeError: If they are not.
        """
        if self._datasets and digest_weights(pl_module.model.backbone) != self._weights:  # type: ignore[union-attr, arg-type]
            raise RuntimeError(
                "The backbone's weights changed after the features were computed. Load weights before the training "
                f"starts. {_OFF}"
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave everything as it was before the training."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave everything as it was before the training."""
        self._restore()

    def _replace(self, datamodule: Any, name: str, value: Any) -> None:
        if hasattr(datamodule, name):
            self._undo.callback(setattr, datamodule, name, getattr(datamodule, name))
            setattr(datamodule, name, value)

    def _restore(self) -> None:
        self._undo.close()
        for dataset in self._datasets.values():
            dataset.release()
        self._datasets = {}

    def _parts(self, trainer: Any, pl_module: Any, stage: str, images: AnomalibDataset) -> list[CachedPart]:
        """Open the caches of a stage, or build them: images first, then their copies."""
        # A training needs no masks, and a dataset without them (classification) has none to give.
        masks = stage == "validation" and images.samples.attrs.get("task") == "segmentation"
        # Synthetic anomalies are drawn anew for each training: files of them would never be used again.
        in_memory = self.mode == "memory" or isinstance(images, SyntheticAnomalyDataset)
        groups = self._groups(trainer, pl_module, stage, images, masks)
        to_build = sum(len(group.rows) for group in groups if in_memory or not self.store.has(group.key))
        check_all: Any = partial(check_space, images=to_build, dtype=self.dtype)
        parts: list[CachedPart] = []
        found: Counter[str] = Counter()
        for group in groups:
            compute = partial(
                compute_features,
                images,
                self._transform,
                pl_module.model,
                pl_module.device,
                dtype=self.dtype,
                masks=masks,
                num_workers=self._num_workers,
                progress=trainer.progress_bar_callback is not None,
                rows=group.rows,
                copy=group.copy,
            )
            # The first one that is built looks whether there is room for all.
            check = None if any(how.startswith("built now") for how in found) else check_all
            if in_memory:
                memory = MemoryWriter()
                compute(memory, check_space=check and partial(check, processes=trainer.num_devices))
                arrays, how = memory.arrays, "built now, in memory"
            else:
                check = check and partial(check, keep=[part.key for part in groups])
                arrays, how = self._obtain(trainer, pl_module, images, masks, group, compute, check)
            parts.append(CachedPart(group.rows, arrays))
            found[how] += 1
        size = gigabytes(sum(array.nbytes for part in parts for array in part.arrays.values()))
        made = sum(len(group.rows) for group in groups if group.copy is not None)
        names = f"cache {groups[0].key}" if len(groups) == 1 else f"{len(groups)} caches"
        copies = f" and {made} copies" if made else ""
        origin = ", ".join(found) if len(found) == 1 else ", ".join(f"{count} {how}" for how, count in found.items())
        title = _title(trainer, images, stage)
        rank_zero_info(f"Features of {title} from {names} ({len(images)} images{copies}, {size}), {origin}.")
        return parts

    def _groups(self, trainer: Any, pl_module: Any, stage: str, images: AnomalibDataset, masks: bool) -> list["_Group"]:
        """What is one cache each: the images of a product, or one kind of copy of them."""
        shared = key_parts(images, self._transform, pl_module.model, self.dtype, pl_module.device.type, masks=masks)
        products = rows_of_products(images, trainer.datamodule)
        files = {name: digest_of(describe_files(images, masks, rows)) for name, rows in products.items()}
        kinds: list[tuple[str, ImageCopy | None]] = [(name, None) for name in products]
        if stage == "training":
            kinds += [(name, copy) for name in products for copy in copies_of(self.copies, name)]
        groups = []
        for name, copy in kinds:
            made_of = {**shared, "files": files[name], **({} if copy is None else {"copy": [copy.name, copy.number]})}
            title = [_title(trainer, images, stage), *([name] if len(products) > 1 else ())]
            meta = {
                "key": key_of(made_of),
                "dataset": ", ".join(title if copy is None else [*title, copy.name]),
                "images": len(products[name]),
                "backbone": shared["extractor"]["backbone"],
                "made_of": made_of,
            }
            groups.append(_Group(products[name], copy, meta))
        return groups

    def _obtain(
        self,
        trainer: Any,
        pl_module: Any,
        images: AnomalibDataset,
        masks: bool,
        group: "_Group",
        compute: Callable[..., None],
        check: Callable[..., None] | None,
    ) -> tuple[dict[str, np.ndarray], str]:
        """Open the files of a cache, or build them. With several processes, one builds and the others wait."""

        def build(writer: CacheWriter) -> None:
            same = on_same_disk(self.store.directory, Path(trainer.default_root_dir))
            reserved = space_of_run(trainer, pl_module)[0] if same else 0
            compute(writer, check_space=check and partial(check, store=self.store, reserved=reserved))
            if digest_of(describe_files(images, masks, group.rows)) != group.meta["made_of"]["files"]:
                msg = f"Images of {group.meta['dataset']} changed while their features were computed. Start again."
                raise RuntimeError(msg)
            writer.finish(group.meta)

        try:
            return self.store.obtain(group.key, build, rank_zero_info)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise DiskError(f"The disk of {str(self.store.directory)!r} became full. {_ADVICE}") from error


class _Group(NamedTuple):
    """Rows of a dataset whose features are one cache."""

    rows: list[int]
    copy: ImageCopy | None
    meta: dict[str, Any]

    @property
    def key(self) -> str:
        """Name of the cache."""
        return self.meta["key"]


def _title(trainer: Any, images: AnomalibDataset, stage: str) -> str:
    return f"{getattr(trainer.datamodule, 'name', None) or images.name}, {stage}"


def rows_of_products(images: AnomalibDataset, datamodule: Any) -> dict[str, list[int]]:
    """Return the rows of each product of a dataset, in the order of their first images."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(categories_of(list(images.samples["image_path"]), datamodule)):
        rows.setdefault(name, []).append(row)
    return rows


def sample_by_variance(dataset: CachedDataset, products: Mapping[str, list[int]]) -> None:
    """Draw images of the products, by name their rows, as often as they differ; say how often that is."""
    if len(products) > 1:
        rows = list(products.values())
        shares = shares_of_products(dataset, rows)
        dataset.sample(rows, shares)
        drawn = (f"{name} {100 * share:.3g} %" for name, share in zip(products, shares.tolist(), strict=True))
        rank_zero_info(f"Images drawn: {', '.join(drawn)}.")


def check_products(copies: Copies | None, products: Iterable[str]) -> None:
    """Refuse copies of products that are not trained."""
    unknown = set(copies if isinstance(copies, dict) else ()) - set(products)
    if unknown:
        names = ", ".join(sorted(map(repr, unknown)))
        msg = f"feature_cache_copies has {names}, but the products of this training are {', '.join(products)}."
        raise InputError(msg)


def _remove_filter(item: Any) -> None:
    if item in warnings.filters:
        warnings.filters.remove(item)  # type: ignore[attr-defined]


def check_model(model: Any) -> None:
    """Refuse models whose features can change, or that cannot extract them."""
    if not callable(getattr(model, "extract", None)) or not hasattr(model, "backbone"):
        msg = f"The feature cache needs a model with `backbone` and `extract`; {type(model).__name__} has not. {_OFF}"
        raise InputError(msg)
    if any(parameter.requires_grad for parameter in model.backbone.parameters()):
        raise InputError(f"The backbone has trainable parameters, so its features change. Freeze it, or: {_OFF}")


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies that split a model over devices: no process could extract features alone."""
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        name = type(trainer.strategy).__name__
        raise InputError(f"The feature cache works on one device and with DDP, not with {name}. {_OFF}")


def check_transfer(*owners: Any) -> None:
    """Refuse datamodules and models that change batches on their way to the device."""
    for owner in owners:
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
            found = getattr(type(owner), hook, None)
            if found is not None and found is not getattr(DataHooks, hook):
                raise InputError(
                    f"{type(owner).__name__} has its own {hook}, which may change images in every epoch, and the "
                    f"feature cache would not see it. {_OFF}"
                )


def transform_of_images(trainer: Trainer, pl_module: LightningModule) -> Any:
    """Return the transform of the pre-processor, if the trainer runs it.

    Refuses random ones, and pre-processors that do something else with images, or anything with batches of features.
    """
    found: Any = getattr(pl_module, "pre_processor", None)
    if found is None or all(item is not found for item in trainer.callbacks):  # type: ignore[attr-defined]
        return None
    if not isinstance(found, PreProcessor):
        raise InputError(f"The feature cache knows pre-processors of anomalib, not {type(found).__name__}. {_OFF}")
    check_deterministic(found.transform, "pre_processor")
    geometry: Any = getattr(found, "geometry", None)
    height, width = (32, 32) if geometry is None else geometry.least
    image = torch.linspace(0, 1, 3 * height * width).reshape(1, 3, height, width)
    expected = image if found.transform is None else found.transform(image)
    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        images: Any = ImageBatch(image=image)
        features: Any = CachedBatch(image=image, features=torch.zeros(1, 1, 1, 1))
        for batch in (images, features):
            getattr(found, hook)(trainer, pl_module, batch, 0)
        if not images.image.equal(expected) or not features.image.equal(image):
            raise InputError(
                f"The feature cache transforms images itself, once, but {hook} of {type(found).__name__} does "
                f"something else with images, or does not leave batches that bring their features alone. {_OFF}"
            )
    return found.transform


def check_dataset(dataset: Any, where: str) -> None:
    """Refuse datasets that give no images, or not always the same; ``where`` its augmentations come from."""
    if not isinstance(dataset, AnomalibDataset) or isinstance(dataset, (AnomalibDepthDataset, AnomalibVideoDataset)):
        raise InputError(f"The feature cache needs an image dataset of anomalib, not {type(dataset).__name__}. {_OFF}")
    reader = next(cls for cls in type(dataset).__mro__ if {"__getitem__", "__getitems__"} & vars(cls).keys())
    if reader.__module__.split(".")[0] not in {"anomalib", "anomalib_uniad"} and not hasattr(dataset, "content_key"):
        raise InputError(
            f"{reader.__qualname__} reads its items itself (__getitem__), and the feature cache cannot see what they "
            "depend on. If they are always the same, give the dataset an attribute content_key, a string that changes "
            f"with their contents. {_OFF}"
        )
    for part in getattr(dataset, "parts", ()):  # which read the images
        check_dataset(part, where)
    check_deterministic(dataset.augmentations, where)
    _check_collate(dataset.collate_fn, ImageBatch.collate)


def check_loader(loader: Any, dataset: CachedDataset) -> None:
    """Refuse what a datamodule gives the trainer if it does not make batches of the cached dataset."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        msg = f"The feature cache needs a torch DataLoader that makes batches, not {type(loader).__name__}. {_OFF}"
        raise InputError(msg)
    if loader.dataset is not dataset:
        msg = f"The feature cache needs a datamodule whose dataloaders read its train_data and val_data. {_OFF}"
        raise InputError(msg)
    _check_collate(loader.collate_fn, dataset.collate_fn)


def _check_collate(found: Any, expected: Any) -> None:
    if found != expected:
        name = getattr(found, "__name__", type(found).__name__)
        raise InputError(f"The dataloader has its own collate_fn ({name}), which the feature cache cannot call. {_OFF}")


def check_space(
    needed: int,
    shape: tuple[int, ...],
    dtype: str,
    store: FeatureStore | None = None,
    processes: int = 1,
    reserved: int = 0,
    images: int | None = None,
    keep: Collection[str] = (),
) -> None:
    """Say how many bytes features of a shape need in a store or in memory, of which each process needs as much.

    ``images`` is the number of all images, if the shape is that of some of them, which need ``needed`` bytes.
    ``reserved`` bytes of the store's disk are for the training's other files. Old caches of the store make room, but
    not those with the keys ``keep``.

    An OSError says if there is not enough room.
    """
    free: int | None
    if images is not None:
        needed, shape = needed * images // shape[0], (images, *shape[1:])
    if store is not None:
        for entry in store.make_room(needed, keep, reserved):
            rank_zero_info(
                f"Deleted the feature cache {entry.key} ({entry.meta.get('dataset', 'damaged')}) to make room."
            )
        free, place, advice = max(store.free() - reserved, 0), str(store.directory), _ADVICE
    else:
        available = available_memory()
        free, advice = None if available is None else available // processes, _ADVICE_MEMORY
        place = "memory" if processes == 1 else f"memory of each of {processes} processes"
    size = f"The features of {shape[0]} images, {'x'.join(map(str, shape[1:]))} {dtype}, need {gigabytes(needed)}"
    if free is not None and needed > free:
        beside = " beside the other files of the training" if reserved else ""
        raise DiskError(f"{size} in {place}, but there are only {gigabytes(free)}{beside}. {advice}")
    rank_zero_info(f"{size} in {place}{'' if free is None else f' (free: {gigabytes(free)})'}.")


def available_memory() -> int | None:
    """Return the bytes of memory that can be had without swapping; None if the system does not tell."""
    try:
        lines = _ascii(Path("/proc/meminfo")).splitlines()
    except OSError:  # not Linux
        return None
    # Not sysconf's free pages: what files use as a cache can be had as well.
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):  # the limit of a container; the text "max" if it has none
        limit, used = (int(_ascii(_CONTAINER / name)) for name in ("memory.max", "memory.current"))
        with contextlib.suppress(OSError, ValueError):  # what files use as a cache can be had here, too
            counts = dict(line.split() for line in _ascii(_CONTAINER / "memory.stat").splitlines())
            used -= int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
        found.append(max(0, limit - max(0, used)))
    return min(found) if found else None


def _ascii(file: Path) -> str:
    return file.read_text(encoding="ascii")
