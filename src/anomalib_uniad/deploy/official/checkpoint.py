# SPDX-License-Identifier: Apache-2.0
"""Weights and arguments of a model of the authors' code, in the words of this package."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .arguments import Arguments, arguments_of
from .backbone import identify
from .file import read_official
from .transformer import rename_reconstruction

_NEEDED = (
    "input_proj.weight",
    "output_proj.weight",
    "transformer.encoder.layers.0.linear1.weight",
    "transformer.decoder.layers.0.learned_embed.weight",
)


@dataclass
class OfficialCheckpoint:
    """A model of the authors' code.

    Attributes:
        arguments (dict[str, Any]): Arguments of ``UniAD``.
        sources (dict[str, str]): Where each is from: ``"given"``, ``"tensors"``, ``"arch"`` or ``"default"``.
        backbone (dict[str, torch.Tensor]): Weights of the backbone, in timm's names.
        transformer (dict[str, torch.Tensor]): Weights of ``ReconstructionTransformer``.
        names (dict[str, str]): Name of a tensor of the backbone in timm -> its name in the file.
        unused (list[str]): Names in the file of tensors that the model does not have.
        epoch (int | None): Epochs of training, if the file tells.
        used (int): Number of tensors in the model; known when they are loaded, which are then let go of.
    """

    arguments: dict[str, Any]
    sources: dict[str, str]
    backbone: dict[str, torch.Tensor]
    transformer: dict[str, torch.Tensor]
    names: dict[str, str]
    unused: list[str]
    epoch: int | None = None
    used: int = 0


def load_official(path: Path, given: Mapping[str, Any]) -> OfficialCheckpoint:
    """Read a checkpoint of the authors' code.

    Args:
        path (Path): The file, ``ckpt.pth.tar``.
        given (Mapping[str, Any]): Arguments of ``UniAD`` that are known better than from the file.

    Returns:
        OfficialCheckpoint: The model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, is not of UniAD or contradicts what was given.
    """
    content = read_official(path)
    parts: dict[str, dict[str, torch.Tensor]] = {"backbone": {}, "reconstruction": {}}
    unused = []
    for key, tensor in content.state.items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = tensor
        else:
            unused.append(key)
    matrices = {name for name, tensor in parts["reconstruction"].items() if tensor.dim() == 2}
    missing = [f"reconstruction.{name}" for name in _NEEDED if name not in matrices]
    if missing or not parts["backbone"]:
        missing += [] if parts["backbone"] else ["backbone.*"]
        what = ", ".join(missing)
        msg = f"{str(path)!r} is not a whole UniAD of the authors' code: it has no {what}, or in another shape."
        raise ValueError(msg)
    try:
        backbone, names = identify(parts["backbone"])
        found: Arguments = arguments_of(parts["reconstruction"], content.arch, backbone, given)
    except ValueError as error:
        msg = f"{str(path)!r}: {error}"
        raise ValueError(msg) from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        msg = (
            f"{str(path)!r}: tensors or config (arch) are not as the authors' code writes them "
            f"({type(error).__name__}: {error})."
        )
        raise ValueError(msg) from error
    return OfficialCheckpoint(
        arguments=found.values,
        sources=found.sources,
        backbone={other: parts["backbone"][key] for key, other in names.items()},
        transformer=rename_reconstruction(parts["reconstruction"]),
        names={other: f"backbone.{key}" for key, other in names.items()},
        unused=unused,
        epoch=content.epoch,
    )
