# SPDX-License-Identifier: Apache-2.0
"""UniAD from checkpoints of the authors' code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import LightningModule
from torch import nn

from anomalib_uniad.deploy.official import OfficialCheckpoint, load_official

from .torch_model import UniADModel

Model = TypeVar("Model", bound="FromOfficial")


class FromOfficial(LightningModule):
    """The part of a Lightning module that takes over weights of the authors' code."""

    official: OfficialCheckpoint | None = None

    @classmethod
    def from_official(cls: type[Model], checkpoint: str | Path, **arguments: Any) -> Model:
        """Make the model of a checkpoint of the authors' code, ``ckpt.pth.tar``.

        Sizes are read off the tensors, the rest off the config in the file, else it is the paper's. Nothing of the
        file is executed.

        Args:
            checkpoint (str | Path): The file, with the backbone's weights in it.
            **arguments (Any): Arguments of the model that are to be others than the file says, or that it does not
                tell, for example ``image_score="mean"``.

        Returns:
            Model: The model, with the weights loaded. Its attribute ``official`` tells where each argument is from, and
            which tensors of the file were not used.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, is not of UniAD, or contradicts the arguments.
        """
        path = Path(checkpoint)
        given = {name: value for name, value in arguments.items() if value is not None}
        official = load_official(path, given)
        model = cls(**{**given, **official.arguments, "pre_trained": False, "backbone_weights": None})
        network = cast("UniADModel", model.model)
        _load(network.transformer, official.transformer, path)
        wanted = network.backbone.features.state_dict()
        _load(network.backbone.features, {k: v for k, v in official.backbone.items() if k in wanted}, path)
        official.unused += [official.names[name] for name in official.backbone if name not in wanted]
        model.official = official
        return model


def _load(module: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in wanted]
    misshaped = [
        f"{key} {tuple(tensor.shape)} instead of {tuple(wanted[key].shape)}"
        for key, tensor in state.items()
        if key in wanted and tensor.shape != wanted[key].shape
    ]
    problems = [
        f"{label}: {', '.join(keys)}"
        for label, keys in (("missing", missing), ("unknown", unknown), ("wrong shape", misshaped))
        if keys
    ]
    if problems:
        msg = f"{str(path)!r} does not fit {type(module).__name__}. {'; '.join(problems)}."
        raise ValueError(msg)
    module.load_state_dict(state, strict=False)  # all there, counters of batches apart
