# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments, for all rooms; no torch."""

import math
import reprlib
from collections.abc import Sequence
from typing import Any

from anomalib_uniad.errors import InputError

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 500


def show(value: Any) -> str:
    """Write a value for a message, on one line and not too long.

    Examples:
        >>> show({"a": [1, "two"]})
        "{'a': [1, 'two']}"
    """
    return _short.repr(value)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can be; a bool is none.

    Examples:
        >>> is_finite(0.5), is_finite(10**400), is_finite("1")
        (True, False, False)
    """
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


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
        raise InputError(f"{name} must be at least {lowest}, got {value}.")


def check_loading(train_batch_size: int = 1, eval_batch_size: int = 1, num_workers: int = 0, **others: Any) -> None:
    """Refuse sizes of batches and numbers of workers that a dataloader cannot have, before data are read.

    Args:
        train_batch_size (int): Images per batch of training. Defaults to ``1``.
        eval_batch_size (int): Images per batch of validation and test. Defaults to ``1``.
        num_workers (int): Processes that read images. Defaults to ``0``.
        **others (Any): Other arguments of a datamodule, which are not looked at.

    Raises:
        ValueError: If one is too small.
    """
    del others  # These variables are not used.
    check_at_least("train_batch_size", train_batch_size, 1)
    check_at_least("eval_batch_size", eval_batch_size, 1)
    check_at_least("num_workers", num_workers, 0)


def check_fraction(name: str, value: float) -> None:
    """Refuse a value outside [0, 1].

    Args:
        name (str): Name of the argument.
        value (float): Its value.

    Raises:
        ValueError: If it lies outside.
    """
    if not 0 <= value <= 1:
        raise InputError(f"{name} must lie in [0, 1], got {value}.")


def check_rate(name: str, value: float) -> None:
    """Refuse a share of false alarms that is not above 0 and below 0.5.

    Args:
        name (str): Name of the argument.
        value (float): Its value.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < value < 0.5:
        raise InputError(f"{name} must be above 0 and below 0.5, got {value}.")


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
        raise InputError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def repeat(name: str, value: Any, kind: type, count: int) -> tuple[Any, ...]:
    """Return one value ``count`` times, or ``count`` values as they are.

    Args:
        name (str): Name of the argument.
        value (Any): A value of ``kind`` or a sequence of them.
        kind (type): Type of each value; a bool is no int.
        count (int): How many there must be.

    Returns:
        tuple[Any, ...]: ``count`` values.

    Raises:
        ValueError: If it is something else.

    Examples:
        >>> repeat("image_size", 224, int, 2)
        (224, 224)
    """
    values = (value,) * count if not isinstance(value, Sequence) or isinstance(value, str) else tuple(value)
    if len(values) != count or any(type(item) is not kind for item in values):
        raise InputError(f"{name} must be one {kind.__name__} or {count} of them, got {value!r}.")
    return values


def check_value_range(value_range: Sequence[float] | None) -> tuple[float, float] | None:
    """Return a range of pixel values as a tuple.

    Args:
        value_range (Sequence[float] | None): Values that become black and white; ``None`` is none.

    Returns:
        tuple[float, float] | None: The two values.

    Raises:
        ValueError: If these are not two finite numbers, the lower one first.

    Examples:
        >>> check_value_range([0, 4095])
        (0.0, 4095.0)
    """
    if value_range is None:
        return None
    values = value_range if isinstance(value_range, Sequence) and not isinstance(value_range, str) else ()
    numbers = [float(value) for value in values if is_finite(value)]
    if len(numbers) != 2 or len(values) != 2 or numbers[0] >= numbers[1]:
        raise InputError(
            f"value_range must be two numbers, black and white, such as [0, 4095], got {show(value_range)}."
        )
    return numbers[0], numbers[1]
