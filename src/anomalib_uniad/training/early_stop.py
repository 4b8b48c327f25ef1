# SPDX-License-Identifier: Apache-2.0
"""Ends a training when more of it no longer helps, judged on images that are neither trained on nor tested."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataset
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from anomalib_uniad.category import rows_of
from anomalib_uniad.errors import InputError

from .cached_dataset import CachedDataset, CachedPart, compute_features, evaluating
from .feature_store import MemoryWriter
from .held_out import FEWEST, FEWEST_OF_CATEGORY, hold_out

EVALUATIONS = 20  # in a training that goes to its planned end
WINDOW = 3  # evaluations of which the mean is taken
MARGIN = 0.005  # by which the mean has to be higher than the last one that was called better
PATIENCE = 3  # evaluations without that
_BATCH = 32

Judge = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


class Schedule(Protocol):
    """A learning-rate schedule whose decay can be started."""

    @property
    def decay_start(self) -> int:
        """The step with which the decay starts."""

    @property
    def end(self) -> int:
        """The step at which the training ends."""

    def start_decay(self, step: int) -> None:
        """Start it with this step."""


class EarlyStop(Callback):
    """Has the decay of the learning rate start, and the training end after it, once more of it no longer helps.

    The loss of normal images is no judge: it falls on while defects are found no better. Instead normal images that are
    neither trained on nor tested, and copies of them with synthetic defects, are scored twenty times in the planned
    training; see :mod:`~anomalib_uniad.training.held_out`. What counts is the mean over categories of image AUROC and
    the share of defects that are found at 5 % false alarms.

    At a constant learning rate this goes up and down from one evaluation to the next, so the mean of the last three is
    taken, and a rise counts once it adds up to half a percentage point above the last one that counted: small gains
    that add up keep a training going, noise does not. When nothing has counted for three evaluations, which is 15 % of
    the planned training, the decay starts. Its length is that of a training planned so short.

    With too few images nothing is judged, and the training goes to its end. All of this is the same in a training that
    is resumed.

    Args:
        judge (Callable[[np.ndarray, np.ndarray], tuple[float, float]]): Gets the scores of defective and of normal
            images, and gives AUROC and the share that is found.
        seed (int | None): Seed of what is drawn; ``None`` is 0. Defaults to ``None``.
    """

    def __init__(self, judge: Judge, seed: int | None = None) -> None:
        self._judge, self._seed = judge, seed or 0
        self._images: CachedDataset | None = None
        self._reduced: tuple[AnomalibDataset, pd.DataFrame] | None = None  # training set, and its samples before
        self._num_workers = 0  # of the datamodule, before a feature cache says that there is nothing to read
        self._planned: int | None = None  # the trainer's max_steps
        self._interval = 0  # steps between evaluations
        self._results: list[tuple[float, float]] = []
        self._last_step = 0
        self._end: int | None = None  # step, once it is decided

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hold images out.

        Raises:
            ValueError: If the datamodule has no training set that can be divided.
        """
        if stage != "fit":
            return
        self._restore(trainer)
        self._results, self._last_step, self._end = [], 0, None
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(datamodule, "train_data"):
            msg = "early_stopping works with anomalib's datamodules: give the trainer one instead of dataloaders."
            raise InputError(msg)
        held = hold_out(datamodule, self._seed)
        if held.images is None:
            rank_zero_info(
                f"early_stopping cannot judge by {held.available} held-out good images (it takes {FEWEST}, and "
                f"{FEWEST_OF_CATEGORY} of a product): the training goes to its planned end."
            )
            return
        where = "validation images"
        if held.training is not None:
            # In place: whoever has put something else in the place of the set, as a feature cache does, puts it back.
            self._reduced = datamodule.train_data, datamodule.train_data.samples
            datamodule.train_data.subsample(held.training, inplace=True)
            where = "images that are not trained on"
        rank_zero_info(
            f"early_stopping: the training may end early, judged on {held.available} good {where} and copies of them "
            "with synthetic defects."
        )
        self._images = CachedDataset(held.images)
        self._num_workers = getattr(datamodule, "num_workers", 0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the features of the images."""
        if self._end is not None:
            self._images = None
        if self._images is None:
            return
        writer = MemoryWriter()
        prepare: Any = getattr(pl_module, "pre_processor", None)
        runs = any(callback is prepare for callback in trainer.callbacks)  # type: ignore[attr-defined]
        compute_features(
            self._images.source,
            prepare.transform if runs else None,
            cast("torch.nn.Module", pl_module.model),
            pl_module.device,
            writer,
            num_workers=self._num_workers,
            progress=trainer.progress_bar_callback is not None,
        )
        self._images.fill([CachedPart(range(len(self._images)), writer.arrays)], pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose when to look."""
        if self._images is not None:
            self._interval = max(1, _schedule(trainer).end // EVALUATIONS)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look, if it is time, and decide."""
        step = trainer.global_step
        if self._images is None or self._end is not None or step == self._last_step or step % self._interval:
            return
        self._last_step = step
        schedule = _schedule(trainer)
        if step >= schedule.decay_start:
            return
        self._results.append(self._evaluate(trainer, pl_module))
        names = ("early_stopping_image_AUROC", "early_stopping_found")
        pl_module.log_dict(
            dict(zip(names, self._results[-1], strict=True)), on_step=True, on_epoch=False, rank_zero_only=True
        )
        if trainer.strategy.broadcast(evaluations_without_gain([fmean(pair) for pair in self._results]) >= PATIENCE):
            planned = schedule.end
            schedule.start_decay(step)
            self._end = schedule.end
            self._end_at(trainer, self._end)
            auroc, found = self._results[-1]
            rank_zero_info(
                f"early_stopping: for {PATIENCE * self._interval:,} steps, held-out good images and synthetic defects "
                f"have been told apart no better (image AUROC {auroc:.1%}, found at 5 % false alarms {found:.1%}). The "
                f"learning rate falls from now on, and the training ends after step {self._end:,}, not {planned:,}."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave everything as it was before the training."""
        self._restore(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave everything as it was before the training."""
        self._restore(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the end that was decided before the training was resumed."""
        end = checkpoint["callbacks"].get(self.state_key, {}).get("end")
        if end is not None and trainer.state.fn == TrainerFn.FITTING:
            self._end_at(trainer, end)

    def state_dict(self) -> dict[str, Any]:
        """Return what was judged, and what was decided."""
        return {"results": [list(pair) for pair in self._results], "step": self._last_step, "end": self._end}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self._results = [(auroc, found) for auroc, found in state_dict["results"]]
        self._last_step, self._end = state_dict["step"], state_dict["end"]

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule) -> tuple[float, float]:
        """Mean over categories of what the judge says."""
        images = cast("CachedDataset", self._images)
        scores = []
        with evaluating(pl_module), torch.no_grad():
            for start in range(0, len(images), _BATCH):
                rows = list(range(start, min(start + _BATCH, len(images))))
                batch = trainer.strategy.batch_to_device(images.__getitems__(rows))
                scores.append(pl_module.validation_step(batch, 0).pred_score.float().cpu())  # type: ignore[union-attr]
        score = torch.cat(scores).numpy().astype(np.float64)
        is_defective = images.samples["label_index"].to_numpy() == 1
        judged = []
        for rows in rows_of(images.samples["category"]).values():
            scores_of, defective = score[rows], is_defective[rows]
            judged.append(self._judge(scores_of[defective], scores_of[~defective]))
        aurocs, found = zip(*judged, strict=True)
        return fmean(aurocs), fmean(found)

    def _end_at(self, trainer: Trainer, step: int) -> None:
        self._planned = trainer.max_steps
        trainer.fit_loop.epoch_loop.max_steps = step

    def _restore(self, trainer: Trainer) -> None:
        if self._planned is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._planned
        if self._reduced is not None:
            self._reduced[0].samples = self._reduced[1]
        self._images = self._planned = self._reduced = None


def evaluations_without_gain(results: Sequence[float]) -> int:
    """Count the evaluations since the mean of the last :data:`WINDOW` was better than before by :data:`MARGIN`.

    Args:
        results (Sequence[float]): What came out, from 0 to 1, from the first evaluation on.

    Returns:
        int: The evaluations; 0 as long as there are fewer than that mean takes.

    Examples:
        >>> evaluations_without_gain([0.5, 0.6, 0.7, 0.8, 0.81, 0.79, 0.8, 0.8])
        2
    """
    best, since = -math.inf, 0
    for end in range(WINDOW, len(results) + 1):
        mean = fmean(results[end - WINDOW : end])
        since += 1
        if mean >= best + MARGIN:
            best, since = mean, 0
    return since


def _schedule(trainer: Trainer) -> Schedule:
    return cast("Schedule", trainer.lr_scheduler_configs[0].scheduler)
