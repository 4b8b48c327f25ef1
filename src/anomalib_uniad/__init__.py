# SPDX-License-Identifier: Apache-2.0
"""UniAD for anomalib: one model that detects and localises defects on many product categories.

Importing this package imports neither torch nor anomalib, because :mod:`anomalib_uniad.plugin`
is loaded at the end of every ``import torch``; the public names below are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomalib_uniad.files import version_of

if TYPE_CHECKING:
    from anomalib_uniad.data import CIFAR10, MetaFile, MultiCategory
    from anomalib_uniad.metrics import PerCategoryEvaluator
    from anomalib_uniad.model import UniAD, UniADModel
    from anomalib_uniad.synthetic.synthetic_products import SyntheticProducts

_HOME = {
    "CIFAR10": "data",
    "MetaFile": "data",
    "MultiCategory": "data",
    "PerCategoryEvaluator": "metrics",
    "SyntheticProducts": "synthetic.synthetic_products",
    "UniAD": "model",
    "UniADModel": "model",
}

__all__ = ["CIFAR10", "MetaFile", "MultiCategory", "PerCategoryEvaluator", "SyntheticProducts", "UniAD", "UniADModel"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version_of("anomalib-uniad") or "0+unknown"
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
