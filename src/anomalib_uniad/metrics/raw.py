# SPDX-License-Identifier: Apache-2.0
"""What a model itself returns, before anomalib normalises it."""

from typing import Any

from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor


class RawPredictions:
    """Looks at what anomalib's post-processor of a model is given, from ``start`` to ``stop``.

    The post-processor shifts scores by one threshold for all categories and cuts them to the range from 0 to 1.
    Categories that score higher or lower than others are then cut as a whole, and nothing is left of their order.

    Args:
        post_processor (Any): The post-processor of the model; with another class than anomalib's, or none, what the
            batch has is all that there is.
    """

    def __init__(self, post_processor: Any) -> None:
        self._last: InferenceBatch | None = None
        self._watched: Any = post_processor if isinstance(post_processor, PostProcessor) else None

    def start(self) -> None:
        """Begin to look."""
        if self._watched is not None:
            process = self._watched.post_process_batch

            def look_first(batch: Any) -> None:
                # It puts new tensors into the batch and leaves these as they are.
                self._last = InferenceBatch(pred_score=batch.pred_score, anomaly_map=batch.anomaly_map)
                process(batch)

            self._watched.__dict__["post_process_batch"] = look_first

    def take(self, batch: Any) -> InferenceBatch:
        """Return what the model returned for a batch that was just processed.

        Args:
            batch (Any): The batch.

        Returns:
            InferenceBatch: ``pred_score`` and ``anomaly_map``.
        """
        last, self._last = self._last, None
        return last or InferenceBatch(pred_score=batch.pred_score, anomaly_map=batch.anomaly_map)

    def stop(self) -> None:
        """Leave the post-processor as it was."""
        if self._watched is not None:
            self._watched.__dict__.pop("post_process_batch", None)
        self._watched = self._last = None


def with_raw_scores(batch: Any, raw: InferenceBatch) -> Any:
    """Return a batch with the model's own scores and maps; labels and masks that follow from thresholds stay.

    Args:
        batch (Any): Batch after post-processing; it stays as it is.
        raw (InferenceBatch): What the model returned.

    Returns:
        Any: A new batch.
    """
    changed = {name: getattr(raw, name) for name in ("pred_score", "anomaly_map") if getattr(raw, name) is not None}
    return batch.update(in_place=False, **{name: value.detach() for name, value in changed.items()})
