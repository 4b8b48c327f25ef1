# SPDX-License-Identifier: Apache-2.0
"""Checks of constructor arguments."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

# Arguments that change predictions, but neither names nor shapes of the weights.
_INVISIBLE_IN_WEIGHTS = (
    "backbone_padding",
    "backbone_padding_mode",
    "image_size",
    "feature_stride",
    "num_heads",
    "neighbor_size",
    "neighbor_mask",
    "image_score",
    "score_pool_size",
)


def repeat(name: str, value: Any, kind: type, count: int) -> tuple[Any, ...]:
    """Return one value ``count`` times, or ``count`` values as they are.

    Args:
        name (str): Name of the argument.
        value (Any): A value of ``kind`` or a sequence of them.
        kind (type): Type of each value; a bool is no int.
        count (int): How many there must be.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> repeat("image_size", 224, int, 2)
        (224, 224)
    """
    values = (value,) * count if not isinstance(value, Sequence) or isinstance(value, str) else tuple(value)
    if len(values) != count or any(type(item) is not kind for item in values):
        msg = f"{name} must be one {kind.__name__} or {count} of them, got {value!r}."
        raise ValueError(msg)
    return values


def plain_layers(layers: Any) -> Sequence[int] | Sequence[str]:
    """Return a sequence of layers as a tuple.

    Args:
        layers (Any): Indices or names.

    Raises:
        ValueError: If it is a single index or name.
    """
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        msg = f"layers must be a list of indices or names, got {layers!r}."
        raise ValueError(msg)
    return cast("Sequence[int] | Sequence[str]", tuple(layers))


def check_at_least(name: str, value: float, lowest: float) -> None:
    """Refuse a value that is too small, or not a number.

    Args:
        name (str): Name of the argument.
        value (float): Its value.
        lowest (float): The smallest value that is allowed.

    Raises:
        ValueError: If it is smaller.
    """
    if not value >= lowest:  # nor NaN
        msg = f"{name} must be at least {lowest}, got {value}."
        raise ValueError(msg)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse a value that is none of the choices.

    Args:
        name (str): Name of the argument.
        value (Any): Its value.
        choices (Sequence[Any]): The values that are allowed.

    Raises:
        ValueError: If it is another one.
    """
    if value not in choices:
        msg = f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}."
        raise ValueError(msg)


def check_same_model(saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose model was built with other arguments, where the weights do not show it.

    Args:
        saved (Mapping[str, Any]): Arguments in the checkpoint.
        given (Mapping[str, Any]): Arguments of the model.

    Raises:
        ValueError: If some differ; the message lists them.
    """
    different = [
        f"{name}: {saved[name]} in the checkpoint, {given[name]} in the model"
        for name in _INVISIBLE_IN_WEIGHTS
        if name in saved and name in given and _plain(saved[name]) != _plain(given[name])
    ]
    if different:
        msg = (
            "The checkpoint is of another model; give the arguments of its training (for an imported checkpoint, the "
            f"config beside it, with --config). {'; '.join(different)}."
        )
        raise ValueError(msg)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
