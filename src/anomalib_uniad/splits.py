# SPDX-License-Identifier: Apache-2.0
"""Splits of a datamodule: their ratios, how images are drawn, and where its validation images come from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from anomalib_uniad.errors import InputError

MIXED = "mixed"
"""Mode of the validation split that sets aside good training images and test images; anomalib does not have it."""

MIXED_RATIO = 0.2
"""Part of each that is set aside unless another one is given."""

_DRAWN = {"from_test", "from_train", "synthetic", MIXED}  # by chance, by a ratio and a seed


def draw(items: Sequence[Any], ratio: float, seed: int | None) -> list[Any]:
    """Draw part of some items: at least one of two, never all.

    Args:
        items (Sequence[Any]): What is drawn from.
        ratio (float): The part that is drawn, rounded.
        seed (int | None): The same seed draws the same items; ``None`` is 0.

    Returns:
        list[Any]: The drawn items, in their order.

    Examples:
        >>> len(draw(range(100), 0.2, seed=0)), len(draw(range(3), 0.2, seed=0)), draw([1], 0.2, seed=0)
        (20, 1, [])
    """
    count = min(max(round(len(items) * ratio), 1), len(items) - 1)
    if count < 1:
        return []
    drawn = np.random.default_rng(seed or 0).permutation(len(items))[:count]
    return [items[index] for index in sorted(drawn)]


def validates_test_images(datamodule: Any) -> bool:
    """Tell whether images are validated that are tested as well.

    Args:
        datamodule (Any): A datamodule of anomalib that is set up.

    Returns:
        bool: Whether its validation set and its test set have an image in common.

    Examples:
        >>> from types import SimpleNamespace
        >>> import pandas as pd
        >>> images = SimpleNamespace(samples=pd.DataFrame({"image_path": ["a.png"]}))
        >>> validates_test_images(SimpleNamespace(val_data=images, test_data=images))
        True
    """
    return not _paths(datamodule, "val_data").isdisjoint(_paths(datamodule, "test_data"))


def drawn_without_seed(datamodule: Any) -> bool:
    """Tell whether the next setup of a datamodule will draw other validation images.

    Args:
        datamodule (Any): A datamodule of anomalib.
    """
    return _mode(datamodule) in _DRAWN and getattr(datamodule, "seed", None) is None


def describe_validation(datamodule: Any) -> str:
    """Say where the validation images come from.

    Args:
        datamodule (Any): A datamodule that is set up.

    Returns:
        str: For example ``"test images (same_as_test)"``; empty if the datamodule does not tell.

    Examples:
        >>> from types import SimpleNamespace
        >>> import pandas as pd
        >>> val, test = (SimpleNamespace(samples=pd.DataFrame({"image_path": [path]})) for path in ("a.png", "b.png"))
        >>> mode = {"val_split_mode": "from_test", "val_split_ratio": 0.5, "seed": 133}
        >>> describe_validation(SimpleNamespace(val_data=val, test_data=test, **mode))
        'validation images (from_test, ratio 0.5, seed 133)'
    """
    if not _paths(datamodule, "val_data"):
        return ""
    mode = _mode(datamodule)
    parts = [mode] if mode not in {"", "none"} else []  # some have a validation set without a mode
    if mode in _DRAWN:
        seed = getattr(datamodule, "seed", None)
        parts += [f"ratio {datamodule.val_split_ratio}", "no seed" if seed is None else f"seed {seed}"]
    images = "test images" if validates_test_images(datamodule) else "validation images"
    return f"{images} ({', '.join(parts)})" if parts else images


def check_ratios(**ratios: Any) -> None:
    """Refuse ratios that leave one of the two parts of a split without images.

    Args:
        **ratios (Any): Ratios by the names of their arguments.

    Raises:
        ValueError: If one is not a number between 0 and 1.

    Examples:
        >>> check_ratios(val_split_ratio=0.5)
        >>> check_ratios(val_split_ratio=1.5)
        Traceback (most recent call last):
        anomalib_uniad.errors.InputError: val_split_ratio is 1.5, it has to be a number between 0 and 1, such as 0.5.
    """
    for name, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
            raise InputError(f"{name} is {ratio!r}, it has to be a number between 0 and 1, such as 0.5.")


def _mode(datamodule: Any) -> str:
    mode = getattr(datamodule, "val_split_mode", None) or ""
    return str(getattr(mode, "value", mode))


def _paths(datamodule: Any, name: str) -> set[str]:
    samples = getattr(getattr(datamodule, name, None), "samples", None)
    return set() if samples is None else set(map(str, samples["image_path"]))
