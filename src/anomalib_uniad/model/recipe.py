# SPDX-License-Identifier: Apache-2.0
"""How UniAD is trained: optimizer, schedule, clipping, cached features, compilation, checkpoints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

from anomalib_uniad.training.checkpoint_selection import CheckpointChoice, CheckpointSelection
from anomalib_uniad.training.feature_cache import FeatureCache, FeatureDtype
from anomalib_uniad.training.last_epoch import LastEpochValidation
from anomalib_uniad.training.optimization import LearningRateSchedule, adamw, learning_rate_schedule
from anomalib_uniad.training.resume import ExactResume
from anomalib_uniad.training.resume_checkpoint import ResumeCheckpoint

from .arguments import check_at_least, check_choice
from .torch_model import UniADModel

FeatureCacheMode = Literal["off", "memory", "disk"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]


class Recipe(LightningModule):
    """The part of a Lightning module that trains it; :class:`anomalib_uniad.UniAD` documents the arguments."""

    _compiled: Callable[[torch.Tensor], torch.Tensor] | None = None

    def set_recipe(
        self,
        *,
        learning_rate: float,
        weight_decay: float,
        lr_schedule: LearningRateSchedule,
        lr_warmup_epochs: float,
        lr_decay_epoch: int,
        lr_decay_factor: float,
        gradient_clip_norm: float,
        seed: int | None,
        feature_cache: FeatureCacheMode,
        feature_cache_dtype: FeatureDtype,
        feature_cache_dir: str | Path | None,
        compile_mode: CompileMode | None,
        resume_interval: float,
        checkpoint_selection: CheckpointChoice,
    ) -> None:
        """Check and keep the arguments.

        Raises:
            ValueError: If one is out of its range; the message names it.
        """
        check_at_least("learning_rate", learning_rate, 0)
        check_at_least("weight_decay", weight_decay, 0)
        check_choice("lr_schedule", lr_schedule, get_args(LearningRateSchedule))
        check_at_least("lr_warmup_epochs", lr_warmup_epochs, 0)
        check_at_least("lr_decay_epoch", lr_decay_epoch, 1)
        check_at_least("lr_decay_factor", lr_decay_factor, 0)
        check_at_least("gradient_clip_norm", gradient_clip_norm, 0)
        check_at_least("seed", 0 if seed is None else seed, 0)
        check_choice("feature_cache", feature_cache, get_args(FeatureCacheMode))
        check_choice("feature_cache_dtype", feature_cache_dtype, get_args(FeatureDtype))
        check_choice("compile_mode", compile_mode, (None, *get_args(CompileMode)))
        check_at_least("resume_interval", resume_interval, 0)
        check_choice("checkpoint_selection", checkpoint_selection, get_args(CheckpointChoice))
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.lr_warmup_epochs = lr_warmup_epochs
        self.lr_decay_epoch = lr_decay_epoch
        self.lr_decay_factor = lr_decay_factor
        self.gradient_clip_norm = gradient_clip_norm
        self.seed = seed
        self.compile_mode = compile_mode
        self._training_callbacks: list[Callback] = [LastEpochValidation()]
        if feature_cache != "off":
            self._training_callbacks.append(FeatureCache(feature_cache, feature_cache_dtype, feature_cache_dir))
        self._exact_resume = ExactResume(seed)
        self._training_callbacks.append(self._exact_resume)  # after the cache, whose dataloader it wraps
        if resume_interval > 0:
            self._training_callbacks.append(ResumeCheckpoint(resume_interval))
        self._selection = CheckpointSelection() if checkpoint_selection == "best" else None
        if self._selection is not None:
            self._training_callbacks.append(self._selection)

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks of the training, after those that the model has anyway."""
        return [*cast("Sequence[Callback]", super().configure_callbacks()), *self._training_callbacks]

    def setup(self, stage: str) -> None:
        """Seed the training, if a seed was given, and compile its step, if wanted."""
        if stage != "fit":
            return
        if self.seed is not None:
            seed_everything(self.seed, workers=True)
        if self.compile_mode is not None:
            reconstruct = cast("UniADModel", self.model).reconstruct
            self._compiled = torch.compile(reconstruct, mode=self.compile_mode, dynamic=False)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have a test that follows a resumed training test what was trained."""
        selected = None if self._selection is None else self._selection.selected
        self._exact_resume.keep_trained_weights(self, checkpoint, selected)
        super().on_load_checkpoint(checkpoint)

    def teardown(self, stage: str) -> None:
        """Let go of the compiled step, which cannot be copied, exported or saved."""
        super().teardown(stage)
        self._compiled = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the compiled step, also after a training that failed."""
        return {**super().__getstate__(), "_compiled": None}

    def reconstruct(self, features: torch.Tensor) -> torch.Tensor:
        """The model's ``reconstruct``, compiled if wanted: ``(B, C, h, w)`` to ``(B, C, h, w)``."""
        if self._compiled is None:
            return cast("UniADModel", self.model).reconstruct(features)
        torch.compiler.cudagraph_mark_step_begin()  # CUDA graphs may overwrite what the last step returned
        return self._compiled(features)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a schedule, by default the step of the paper (section 4.1); what is frozen is left out."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = adamw(trainable, self.learning_rate, self.weight_decay, self.trainer)
        schedule = learning_rate_schedule(
            optimizer,
            self.trainer,
            self.lr_schedule,
            self.lr_warmup_epochs,
            self.lr_decay_epoch,
            self.lr_decay_factor,
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}  # type: ignore[typeddict-item]

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients; Lightning refuses to for a fused optimizer in mixed precision, with or without need."""
        if optimizer.defaults.get("fused") and gradient_clip_val and gradient_clip_algorithm in {None, "norm"}:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments that the trainer must have, whatever the user gives it."""
        return {"gradient_clip_val": self.gradient_clip_norm, "num_sanity_val_steps": 0}
