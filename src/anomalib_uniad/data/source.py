# SPDX-License-Identifier: Apache-2.0
"""The datamodule classes that :class:`~anomalib_uniad.data.MultiCategory` can wrap."""

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import anomalib.data
from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.datamodules.base.video import AnomalibVideoDataModule


def source_class(source: str) -> type[AnomalibDataModule]:
    """Return the datamodule class of a name.

    Args:
        source (str): Name of a class in ``anomalib.data`` or ``anomalib_uniad.data``, or a dotted path.

    Returns:
        type[AnomalibDataModule]: A class of image datamodules with an argument ``category``.

    Raises:
        ValueError: If there is no such class, or if it does not have single categories of images.
    """
    found = _look_up(source)
    if not (inspect.isclass(found) and issubclass(found, AnomalibDataModule)):
        msg = f"Unknown source {source!r}. {_usable()}"
        raise ValueError(msg)
    if issubclass(found, AnomalibVideoDataModule):
        msg = f"The source {source!r} is made of videos; MultiCategory joins images. {_usable()}"
        raise ValueError(msg)
    if "category" not in parameters(found):
        msg = f"The source {source!r} has no argument `category`, so it has no categories to join. {_usable()}"
        raise ValueError(msg)
    return found


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the constructor arguments of a class, including those handed on to its bases as ``**kwargs``."""
    collected: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        own = list(inspect.signature(base.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = {p.name: p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        collected = {**named, **collected}
        if not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return collected


def listed_categories(cls: type[AnomalibDataModule]) -> list[str]:
    """Return the categories that a datamodule's own modules list (constants named ``CATEGORIES``), sorted.

    Those of a derived class replace those of its bases.
    """
    for base in _own_bases(cls):
        listed: set[str] = set()
        for module in _modules(base):
            for name, value in vars(module).items():
                if name.endswith("CATEGORIES") and isinstance(value, (tuple, list, frozenset, set)):
                    listed.update(item for item in value if isinstance(item, str))
        if listed:
            return sorted(listed)
    return []


def generates(cls: type[AnomalibDataModule]) -> bool:
    """Tell whether ``prepare_data`` makes all categories that the class lists, as far as they are missing.

    That is assumed where one module, not of anomalib, has both. anomalib's classes download an archive.
    """
    module = cls.prepare_data.__module__
    listed = getattr(sys.modules[module], "CATEGORIES", ())
    return not module.startswith("anomalib.") and sorted(listed) == listed_categories(cls) != []


def downloads_alone(cls: type[AnomalibDataModule], category: str) -> bool:
    """Tell whether ``prepare_data`` can download a category without all the others."""
    modules = (module for base in _own_bases(cls) for module in _modules(base))
    return any(category in getattr(module, "DOWNLOAD_URLS", {}) for module in modules)


def _look_up(source: str) -> Any:
    if "." in source:
        module, _, name = source.rpartition(".")
        try:
            return getattr(import_module(module), name, None)
        except ImportError as error:
            msg = f"The source {source!r} cannot be imported: {error}. {_usable()}"
            raise ValueError(msg) from error
    own = import_module("anomalib_uniad.data")
    return getattr(anomalib.data, source, None) or getattr(own, source, None)


def _usable() -> str:
    own = import_module("anomalib_uniad.data")
    classes = {
        name: getattr(module, name, None)
        for module in (anomalib.data, own)
        for name in {*vars(module), *getattr(module, "__all__", ())}
    }
    names = sorted(
        name
        for name, cls in classes.items()
        if inspect.isclass(cls)
        and issubclass(cls, AnomalibDataModule)
        and not issubclass(cls, AnomalibVideoDataModule)
        and "category" in parameters(cls)
    )
    return f"Usable are {', '.join(names)}, or the dotted path of a class like these."


def _own_bases(cls: type) -> Iterator[type]:
    """Yield a datamodule class and its bases up to anomalib's base class."""
    for base in cls.__mro__:
        if base is AnomalibDataModule:
            return
        yield base


def _modules(cls: type) -> Iterator[Any]:
    """Yield the module of a datamodule class and those of the datasets in it."""
    module = sys.modules[cls.__module__]
    yield module
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, AnomalibDataset):
            yield sys.modules[value.__module__]
