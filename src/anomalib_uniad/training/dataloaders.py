# SPDX-License-Identifier: Apache-2.0
"""Takes the place of a datamodule's dataloaders for the time of a training."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningDataModule


def wrap_dataloader(datamodule: LightningDataModule, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    """Let a dataloader method of one datamodule return something else.

    Wrappers stack: the last one that was put on sees what the ones before it return. Take them off in reverse order.

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
    before = vars(datamodule).get(name)  # another wrapper, or nothing
    original = getattr(datamodule, name)

    def dataloader() -> Any:  # a plain function: Lightning looks at its code to see that the method is overridden
        return wrap(original())

    setattr(datamodule, name, dataloader)

    def unwrap() -> None:
        if vars(datamodule).get(name) is not dataloader:
            return
        if before is None:
            delattr(datamodule, name)
        else:
            setattr(datamodule, name, before)

    return unwrap
