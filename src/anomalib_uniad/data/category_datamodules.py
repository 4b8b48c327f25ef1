# SPDX-License-Identifier: Apache-2.0
"""Datamodule classes with an argument ``category``, and the categories that they have."""

import inspect
from importlib import import_module

import anomalib.data
from anomalib.data import AnomalibDataModule
from anomalib.data.datamodules.base.video import AnomalibVideoDataModule

from anomalib_uniad.errors import InputError


def source_class(source: str) -> type[AnomalibDataModule]:
    """Return the datamodule class of a name.

    Args:
        source (str): Name of a class in ``anomalib.data``, where ours are as well, or a dotted path.

    Returns:
        type[AnomalibDataModule]: A class of image datamodules with an argument ``category``.

    Raises:
        ValueError: If there is no such class, or if it does not have single categories of images.
    """
    module, _, name = source.rpartition(".")
    try:
        found = getattr(import_module(module or "anomalib.data"), name, None)
    except ImportError as error:
        raise InputError(f"The source {source!r} cannot be imported: {error}. {_usable()}") from error
    if not (inspect.isclass(found) and issubclass(found, AnomalibDataModule)):
        raise InputError(f"Unknown source {source!r}. {_usable()}")
    if issubclass(found, AnomalibVideoDataModule):
        raise InputError(f"The source {source!r} is made of videos; MultiCategory joins images. {_usable()}")
    if "category" not in arguments_of(found):
        raise InputError(f"The source {source!r} has no argument `category`, so no categories to join. {_usable()}")
    return found


def arguments_of(cls: type) -> dict[str, inspect.Parameter]:
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
    """Return the categories that a class can have, sorted; empty if that is not known.

    Args:
        cls (type[AnomalibDataModule]): One of anomalib's classes, one derived from them, or one with a class attribute
            ``available_categories``: names of the categories that its ``prepare_data`` makes or downloads, also when
            others are there already.
    """
    for base in cls.__mro__:
        if listed := vars(base).get("available_categories"):
            return sorted(listed)
        if base.__module__.startswith("anomalib.data.datamodules."):  # its datasets know, before they are there
            dataset = import_module(base.__module__.replace(".datamodules.", ".datasets."))
            if listed := getattr(dataset, "CATEGORIES", None):
                return sorted(listed)
    return []


def _usable() -> str:
    names = sorted(
        name
        for name, cls in vars(anomalib.data).items()
        if inspect.isclass(cls)
        and issubclass(cls, AnomalibDataModule)
        and not issubclass(cls, AnomalibVideoDataModule)
        and "category" in arguments_of(cls)
    )
    return f"Usable are {', '.join(names)}, or the dotted path of a class like these."
