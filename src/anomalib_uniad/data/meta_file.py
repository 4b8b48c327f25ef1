# SPDX-License-Identifier: Apache-2.0
"""Images that are listed in meta files, as UniAD's authors have them."""

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from anomalib import TaskType
from anomalib.data import AnomalibDataset
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import generate_output_filename
from torchvision.transforms.v2 import Transform

from anomalib_uniad.checks import check_value_range
from anomalib_uniad.data.category_split import split_category
from anomalib_uniad.data.image_checks import check_copies, check_images, check_use, find_files, report_categories
from anomalib_uniad.data.image_dataset import ImageFileDataset
from anomalib_uniad.data.meta_records import read_meta_files
from anomalib_uniad.data.multi_category_datamodule import MultiCategoryDataModule
from anomalib_uniad.data.records import Record, raise_problems
from anomalib_uniad.errors import InputError
from anomalib_uniad.files import real_path
from anomalib_uniad.splits import check_ratios

logger = logging.getLogger(__name__)


class MetaFile(MultiCategoryDataModule):
    """Images of one or several categories, listed in meta files.

    A meta file has one JSON object per line (UTF-8, blank lines are skipped) for each image:
    ``{"filename": "bottle/test/crack/000.png", "label": 1, "label_name": "crack", "maskname":
    "bottle/ground_truth/crack/000_mask.png", "clsname": "bottle"}``. The label is 0 (normal) or 1 (defective). Paths
    are relative to ``root``. The other keys may be missing, null or empty: ``label_name`` is ``"good"`` or
    ``"defective"`` then, and the category, ``clsname``, the fourth part of ``filename`` from its end. ``maskname``
    may be a list of files, which are united; without it, the mask is all zero for label 0 and all one for label 1, and
    if no image of the test file has one, there are no masks at all, and no pixel metrics. Keys besides these are
    ignored, unless they look like a misspelt one.

    The meta files are read when something of them is asked for, at the latest in ``prepare_data``, which also looks
    at all images and masks. Mistakes are reported together, with file and line, and those in the text before a folder
    for results is made.

    Args:
        root (Path | str): Folder that the paths in the meta files are relative to.
        train_meta (Path | str | None): Meta file of the training images. ``None`` is ``train.json`` in ``root``.
            Defaults to ``None``.
        test_meta (Path | str | None): Meta file of the test images. ``None`` is ``test.json`` in the folder of
            ``train_meta``. Defaults to ``None``.
        ader_meta (Path | str | None): A ``meta.json`` in the format of ADer instead of the two:
            ``{"train": {category: [{"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}, ...]}, "test":
            ...}``; there, an empty ``mask_path`` is no mask. Defaults to ``None``.
        train_batch_size (int): Batch size for training. Defaults to ``32``.
        eval_batch_size (int): Batch size for validation and test. Defaults to ``32``.
        num_workers (int): Number of workers of each dataloader, and of threads that check images.
            Defaults to ``8``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where none are given above. Defaults to ``None``.
        test_split_mode (TestSplitMode | str): ``"from_dir"`` takes the test images as they are listed;
            ``"synthetic"`` makes synthetic defects on the normal ones instead. Defaults to ``"from_dir"``.
        test_split_ratio (float): Part of the training images that these are made of, where a category has no
            normal test images. Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): Where the validation set comes from: ``"same_as_test"``,
            ``"mixed"`` (good training images and test images that are set aside), ``"from_test"``, ``"from_train"``,
            ``"synthetic"`` (of training images) or ``"none"``. Defaults to ``"same_as_test"``.
        val_split_ratio (float | None): Part of each category that is split off for validation, of its normal and of
            its defective images. ``None`` is 0.2 for ``"mixed"``, otherwise 0.5. Defaults to ``None``.
        seed (int | None): Seed of the splits, the same for each category; ``None`` is 0. Defaults to ``None``.
        allow_outside_root (bool): Accept absolute paths, ``..`` and links that lead out of ``root``.
            Defaults to ``False``.
        allow_defective_train (bool): Accept training images with label 1. Defaults to ``False``.
        verify_images (bool): Read all files before training, which finds those that are cut off or damaged (check
            sums of PNG files are compared, other types are decoded), masks that contradict the label, and copies of
            training images among the test images. Otherwise only type and size of an image are looked at.
            Defaults to ``True``.
        value_range (Sequence[float] | None): Pixel values that become black and white in grey images of more than 8
            bits, integers or floating point, such as ``[0, 4095]``; images of 8 bits stay as they are. ``None`` refuses
            images of more than 8 bits. Defaults to ``None``.
        per_category_metrics (bool): With several categories, have models report their metrics per category, and as
            the mean over categories, instead of over all images in one pool. Evaluators other than anomalib's own
            class are left as they are. Defaults to ``True``.

    Raises:
        ValueError: If arguments are wrong or do not fit together.

    Examples:
        >>> from anomalib_uniad.data import MetaFile
        >>> datamodule = MetaFile("data/MVTec-AD/mvtec_anomaly_detection", "data/MVTec-AD/train.json")  # doctest: +SKIP
        >>> datamodule.categories[:2]  # doctest: +SKIP
        ['bottle', 'cable']
    """

    def __init__(
        self,
        root: Path | str,
        train_meta: Path | str | None = None,
        test_meta: Path | str | None = None,
        ader_meta: Path | str | None = None,
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = "from_dir",
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = "same_as_test",
        val_split_ratio: float | None = None,
        seed: int | None = None,
        allow_outside_root: bool = False,
        allow_defective_train: bool = False,
        verify_images: bool = True,
        value_range: Sequence[float] | None = None,
        per_category_metrics: bool = True,
    ) -> None:
        check_ratios(test_split_ratio=test_split_ratio)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        if self.test_split_mode == TestSplitMode.NONE:
            msg = "test_split_mode is 'none', but the test images are listed: it has to be 'from_dir' or 'synthetic'."
            raise InputError(msg)
        if self.val_split_mode == ValSplitMode.FROM_DIR:
            msg = "val_split_mode is 'from_dir', but there is no meta file of validation images: split them off."
            raise InputError(msg)
        self.root = real_path(Path(root).expanduser())
        self.verify_images = verify_images
        self.value_range = check_value_range(value_range)
        self.per_category_metrics = per_category_metrics
        self.category_by_path = {}
        self._meta = train_meta, test_meta, ader_meta
        self._allowed = allow_outside_root, allow_defective_train
        self.images_checked = True  # in prepare_data, as far as verify_images says
        self._checked = False

    @cached_property
    def categories(self) -> list[str]:  # type: ignore[override]
        """Names of the categories, sorted.

        Raises:
            FileNotFoundError: If the root or a meta file is not there.
            ValueError: If there is anything wrong in the meta files; see :meth:`prepare_data`.
        """
        return sorted({record.category for record in self._records})

    @cached_property
    def name(self) -> str:  # type: ignore[override]
        """Name of the dataset, that of the folder with all images.

        anomalib names the folder of the results after it, and its visualizers keep the folders that follow it
        in the path of an image, which tells images of the same name apart. It asks before it makes that folder, so
        mistakes in the text of the meta files are reported here.
        """
        paths = [record.paths[0] for record in self._records]
        base = Path(os.path.commonpath([self.root, *paths]))
        if base.name:
            return base.name
        # Images in folders that have nothing in common.
        name = type(self).__name__
        files = [generate_output_filename(path, ".", name, mkdir=False) for path in paths]
        if len(set(files)) < len(files):
            logger.warning(
                "The images have no common folder: heatmaps of images of the same name overwrite each other."
            )
        return name

    def prepare_data(self) -> None:
        """Read the meta files, and check that all images and masks can be read and fit to each other.

        Raises:
            FileNotFoundError: If the root or a meta file is not there.
            ValueError: If there is anything wrong in the meta files or images; the message has all of it, with file
                and line.
        """
        if not self._checked:
            for record in self._records:
                record.problems.clear()  # of an earlier try
            self._check_files(self._records)
            raise_problems(self._records)
            self._checked = True

    def _check_files(self, records: Sequence[Record]) -> None:
        check_images(records, self.verify_images, self.num_workers, self.value_range)
        if self.verify_images:
            check_copies(records, self.num_workers)

    @cached_property
    def _records(self) -> list[Record]:
        """Read and check the meta files.

        Not in the constructor: the command line would bury what it raises in messages of its own.
        """
        listed = read_meta_files(self.root, *self._meta)
        allow_outside_root, allow_defective_train = self._allowed
        records = find_files(listed, self.root, allow_outside_root)
        check_use(records, allow_defective_train)
        if any(record.problems for record in listed):
            self._check_files(records)  # so that nobody has to correct the files twice
            raise_problems(listed)
        synthetic = self.val_split_mode == ValSplitMode.SYNTHETIC
        if synthetic and any(record.label == 1 and record.split == Split.TRAIN for record in records):
            msg = "val_split_mode is 'synthetic', which needs training images without defects; there are others."
            raise InputError(msg)
        whole = [r for r in records if r.split == Split.TEST and r.label == 1 and not r.masks]
        if whole and _tested_with_masks(records):
            text = "%d defective test images have no mask (first: %s): all of their pixels count as defective"
            logger.warning(text, len(whole), whole[0].place)
        report_categories(records)
        return records

    def _setup(self, _stage: str | None = None) -> None:
        if getattr(self, "trainer", None) is None:  # a trainer has called it, in one process for all of them
            self.prepare_data()
        super()._setup(_stage)

    def _read_category(self, category: str) -> dict[str, AnomalibDataset]:
        task = TaskType.SEGMENTATION if _tested_with_masks(self._records) else TaskType.CLASSIFICATION
        own = [record for record in self._records if record.category == category]
        return split_category(
            ImageFileDataset([r for r in own if r.split == Split.TRAIN], task, value_range=self.value_range),
            ImageFileDataset([r for r in own if r.split == Split.TEST], task, value_range=self.value_range),
            self,
        )


def _tested_with_masks(records: Sequence[Record]) -> bool:
    """Tell whether there are masks; those of defective training images are no use if the test has none."""
    return any(record.masks for record in records if record.split == Split.TEST)
