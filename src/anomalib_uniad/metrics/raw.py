# SPDX-License-Identifier: Apache-2.0
"""What a model itself returns, before anomalib normalises it."""

from typing import Any

from anomalib.data import InferenceBatch
from torch import nn


class RawPredictions:
    """Looks at what the torch model of a Lightning module returns, until it is told to stop.

    anomalib's post-processor shifts scores by one threshold for all categories and cuts them to the range from 0 to 1.
    Categories that score higher or lower than others are then cut as a whole, and nothing is left of their order.

    Args:
        pl_module (Any): A model of anomalib; one without a torch model in ``model`` is never seen to return anything.
    """

    def __init__(self, pl_module: Any) -> None:
        self._last: InferenceBatch | None = None
        model = getattr(pl_module, "model", None)
        self._hook = model.register_forward_hook(self._keep) if isinstance(model, nn.Module) else None

    def take(self) -> InferenceBatch | None:
        """Return what was returned last, once."""
        last, self._last = self._last, None
        return last

    def stop(self) -> None:
        """Leave the model as it was."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._last = None

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        self._last = output if isinstance(output, InferenceBatch) else None


def with_raw_scores(batch: Any, raw: InferenceBatch | None) -> Any:
    """Return a batch with the model's own scores and maps; labels and masks that follow from thresholds stay.

    Args:
        batch (Any): Batch after post-processing; it stays as it is.
        raw (InferenceBatch | None): What the model returned.

    Returns:
        Any: A new batch, or the same one if there is nothing to change.
    """
    changed = {}
    for name in ("pred_score", "anomaly_map"):
        value, processed = getattr(raw, name, None), getattr(batch, name, None)
        if value is not None and processed is not None and value.numel() == processed.numel():
            changed[name] = value.detach().reshape(processed.shape)
    return batch.update(in_place=False, **changed) if changed else batch
