# SPDX-License-Identifier: Apache-2.0
"""Datamodules with several categories."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomalib_uniad.data.cifar10 import CIFAR10
    from anomalib_uniad.data.meta_file import MetaFile
    from anomalib_uniad.data.multi_category import MultiCategory

__all__ = ["CIFAR10", "MetaFile", "MultiCategory"]

_HOME = {
    "CIFAR10": "cifar10",
    "MetaFile": "meta_file",
    "MultiCategory": "multi_category",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# anomalib.data loads its plugins, this package among them, at the end of its own import. So it has to be
# imported before the modules here, which would otherwise be found half executed, and after `__getattr__`.
import_module("anomalib.data")
