# SPDX-License-Identifier: Apache-2.0
"""Takes the place of a datamodule's dataloaders for the time of a training."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule


def wrap_dataloader(datamodule: LightningDataModule, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Let a dataloader method of one datamodule return something else.

    Wrappers stack: each gets what those before it return. They can be taken off in any order.

    Args:
        datamodule (LightningDataModule): The datamodule; its class stays as it is.
        name (str): Name of the method, for example ``"train_dataloader"``.
        wrap (Callable[[Any], Any]): Gets what the method returns when the trainer asks for it, returns what the
            trainer is to get.

    Returns:
        Callable[[], None]: Takes the wrapper off again; a second call does nothing.

    Example:
        >>> datamodule = LightningDataModule()
        >>> unwrap = wrap_dataloader(datamodule, "prepare_data", lambda result: (result, "more"))
        >>> datamodule.prepare_data()
        (None, 'more')
        >>> unwrap()
        >>> datamodule.prepare_data()
    """
    before = vars(datamodule).get(name)
    stack: list[Callable[[Any], Any]] | None = getattr(before, "wrappers", None)
    if stack is None:
        stack = []
        _put_on(datamodule, name, stack, before)
    stack.append(wrap)

    def unwrap() -> None:
        if wrap in stack:
            stack.remove(wrap)
        current = vars(datamodule).get(name)
        if not stack and getattr(current, "wrappers", None) is stack:
            current.take_off()  # type: ignore[union-attr]

    return unwrap


def _put_on(datamodule: LightningDataModule, name: str, stack: list[Callable[[Any], Any]], before: Any) -> None:
    original = getattr(datamodule, name)

    def dataloader() -> Any:  # a plain function: Lightning looks at its code to see that the method is overridden
        result = original()
        for wrap in stack:
            result = wrap(result)
        return result

    def take_off() -> None:
        if before is None:
            delattr(datamodule, name)
        else:
            setattr(datamodule, name, before)

    dataloader.wrappers = stack  # type: ignore[attr-defined]
    dataloader.take_off = take_off  # type: ignore[attr-defined]
    setattr(datamodule, name, dataloader)
