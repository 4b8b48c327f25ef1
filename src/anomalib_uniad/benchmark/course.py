# SPDX-License-Identifier: Apache-2.0
"""Seconds and validation metrics of a training, interruptions left out."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from anomalib_uniad.files import replacing


class Course(Callback):
    """Measures a training from its start to its end and keeps what its validations log.

    Both are in checkpoints, so that a training that is resumed goes on counting where the checkpoint was written.

    Args:
        progress (Path | str | None): JSON file that says at the end of each epoch how far the training is: ``done``
            from 0 to 1, after ``seconds``, at ``time`` (of this machine's clock). Defaults to ``None``.

    Attributes:
        validations (list[dict[str, float]]): ``epoch`` and ``seconds`` of each validation, and its metrics.

    Examples:
        >>> trainer = Trainer(callbacks=[Course()], accelerator="cpu", logger=False)
    """

    def __init__(self, progress: Path | str | None = None) -> None:
        self._progress = None if progress is None else Path(progress)
        self._before = 0.0  # seconds up to the checkpoint
        self._start = time.perf_counter()
        self.validations: list[dict[str, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._before + time.perf_counter() - self._start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the clock: before features are cached."""
        if stage == "fit":
            self._start = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return seconds and validations."""
        return {"seconds": self.seconds, "validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._before, self.validations = state_dict["seconds"], list(state_dict["validations"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of a validation during the training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name[0] != "_"}
            if metrics:
                about = {"epoch": trainer.current_epoch + 1, "seconds": round(self.seconds, 2)}
                self.validations.append({**about, **metrics})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how far the training is."""
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        if self._progress is not None and trainer.is_global_zero and max(epochs, steps) > 0:
            parts = [(trainer.current_epoch + 1) / epochs] * (epochs > 0) + [trainer.global_step / steps] * (steps > 0)
            # An estimate is no result: it need not be there.
            with contextlib.suppress(OSError), replacing(self._progress, flush=False) as (partial,):
                progress = {"done": max(parts), "seconds": self.seconds, "time": time.time()}
                partial.write_text(json.dumps(progress), encoding="utf-8")
