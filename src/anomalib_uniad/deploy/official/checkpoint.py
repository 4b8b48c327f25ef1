# SPDX-License-Identifier: Apache-2.0
"""A model of the authors' code: its arguments and weights under the names of this package."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomalib_uniad.errors import InputError
from anomalib_uniad.files import shortened

from .arguments import arguments_of
from .backbone import identify
from .safe_file import read_official

_NEEDED = (
    "input_proj.weight",
    "output_proj.weight",
    "transformer.encoder.layers.0.linear1.weight",
    "transformer.decoder.layers.0.learned_embed.weight",
)

# Name in the authors' `reconstruction` module -> name in `ReconstructionTransformer`. In the authors' decoder,
# `self_attn` is the attention to the encoder's output and `multihead_attn` that to the previous layer.
_RENAMES = (
    (r"^input_proj\.", "input_projection."),
    (r"^output_proj\.", "output_projection."),
    (r"^pos_embed\.(row|col)_embed\.weight$", r"position.\1_embed"),
    (r"^transformer\.encoder\.", "encoder."),
    (r"^transformer\.decoder\.", "decoder."),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.self_attention."),
    (r"^(decoder\.layers\.\d+)\.self_attn\.", r"\1.encoder_attention."),
    (r"^(decoder\.layers\.\d+)\.multihead_attn\.", r"\1.previous_attention."),
    (r"^(decoder\.layers\.\d+)\.learned_embed\.weight$", r"\1.query"),
    (r"\.linear1\.", ".feedforward.0."),
    (r"\.linear2\.", ".feedforward.3."),
)


@dataclass
class OfficialCheckpoint:
    """A model of the authors' code.

    Attributes:
        path (Path): The file.
        arguments (dict[str, Any]): Arguments of ``UniAD``.
        sources (dict[str, str]): Where each is from: ``"given"``, ``"tensors"``, ``"arch"`` or ``"default"``.
        backbone (dict[str, torch.Tensor]): Weights of the backbone, in timm's names.
        transformer (dict[str, torch.Tensor]): Weights of ``ReconstructionTransformer``.
        names (dict[str, str]): Name of a tensor of the backbone in timm -> its name in the file.
        unused (list[str]): Names in the file of tensors that the model does not have.
        epoch (int | None): Epochs of training, if the file has them.
        used (int): Number of tensors in the model, set when they are loaded into it.
    """

    path: Path
    arguments: dict[str, Any]
    sources: dict[str, str]
    backbone: dict[str, torch.Tensor]
    transformer: dict[str, torch.Tensor]
    names: dict[str, str]
    unused: list[str]
    epoch: int | None = None
    used: int = 0

    def load_into(self, backbone: nn.Module, transformer: nn.Module) -> None:
        """Load the weights into a model, and let go of them.

        Args:
            backbone (nn.Module): Of timm.
            transformer (nn.Module): ``ReconstructionTransformer``.

        Raises:
            ValueError: If they do not fit.
        """
        try:
            transformer.load_state_dict(self.transformer)
        except RuntimeError as error:  # lists what is missing, unknown or of another shape
            raise InputError(f"{str(self.path)!r} does not fit the model. {error}") from error
        wanted = backbone.state_dict()
        needed = {name: tensor for name, tensor in self.backbone.items() if name in wanted}
        backbone.load_state_dict(needed, strict=False)  # only counters of batches may be missing
        self.unused += [self.names[name] for name in self.backbone if name not in wanted]
        self.used = len(needed) + len(self.transformer)
        self.backbone, self.transformer = {}, {}


def load_official(path: Path, given: Mapping[str, Any]) -> OfficialCheckpoint:
    """Read a checkpoint of the authors' code.

    Args:
        path (Path): The file, ``ckpt.pth.tar``.
        given (Mapping[str, Any]): Arguments of ``UniAD`` that win over the config in the file.

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
    missing += [] if parts["backbone"] else ["backbone.*"]
    if missing:
        what = ", ".join(missing)
        msg = f"{str(path)!r} is not a whole UniAD of the authors' code: it has no {what}, or in another shape."
        raise InputError(msg)
    try:
        backbone, names = identify(parts["backbone"])
        arguments, sources = arguments_of(parts["reconstruction"], content.arch, backbone, given)
    except ValueError as error:
        raise InputError(f"{str(path)!r}: {shortened(error, 1000)}.") from error
    except (AttributeError, ArithmeticError, IndexError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(path)!r}: tensors or config (arch) are not as the authors' code writes them "
            f"({type(error).__name__}: {shortened(error)})."
        ) from error
    return OfficialCheckpoint(
        path=path,
        arguments=arguments,
        sources=sources,
        backbone={name: parts["backbone"][key] for key, name in names.items()},
        transformer=rename_reconstruction(parts["reconstruction"]),
        names={name: f"backbone.{key}" for key, name in names.items()},
        unused=unused,
        epoch=content.epoch,
    )


def rename_reconstruction(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename weights of the authors' ``reconstruction``, without prefix, to those of ``ReconstructionTransformer``."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
