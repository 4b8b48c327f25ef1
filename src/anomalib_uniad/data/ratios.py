# SPDX-License-Identifier: Apache-2.0
"""Ratios of splits, checked before anything is split."""

from typing import Any


def check_ratios(**ratios: Any) -> None:
    """Refuse ratios that leave one of the two parts of a split without images.

    Args:
        **ratios (Any): Ratios by the names of their arguments.

    Raises:
        ValueError: If one is not a number between 0 and 1.

    Example:
        >>> check_ratios(val_split_ratio=0.5)
        >>> check_ratios(val_split_ratio=1.5)
        Traceback (most recent call last):
        ValueError: val_split_ratio is 1.5, it has to be a number between 0 and 1, such as 0.5.
    """
    for name, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
            msg = f"{name} is {ratio!r}, it has to be a number between 0 and 1, such as 0.5."
            raise ValueError(msg)
