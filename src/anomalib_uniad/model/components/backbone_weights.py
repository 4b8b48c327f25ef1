# SPDX-License-Identifier: Apache-2.0
"""Local files of backbone weights."""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from anomalib_uniad.errors import InputError, MissingFileError


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of weights; nothing of it is executed.

    Args:
        path (Path): safetensors or torch.

    Returns:
        dict[str, torch.Tensor]: Name -> tensor.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it cannot be read.
    """
    if not path.is_file():
        raise MissingFileError(f"backbone_weights: there is no file {str(path)!r}.")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        if not isinstance(state, dict) or not state or not all(isinstance(x, torch.Tensor) for x in state.values()):
            raise TypeError("it does not hold a mapping of names to tensors")
    except Exception as error:  # of pickle, zipfile, safetensors and torch
        reason = str(error) if isinstance(error, TypeError | SafetensorError) else "it is damaged, or another file"
        if isinstance(error, UnpicklingError) and (found := re.search(r"GLOBAL ([\w.]+)", str(error))):
            reason = f"it holds an object of {found[1]}, which could run code"
        msg = f"backbone_weights: {str(path)!r} cannot be read as safetensors or torch weights: {reason}."
        raise InputError(msg) from error
    return state


def load_weights(features: nn.Module, state: dict[str, torch.Tensor], name: str, path: Path) -> None:
    """Load strictly, except for what only the whole model has (classifier, deeper stages).

    Args:
        features (nn.Module): timm's feature extractor.
        state (dict[str, torch.Tensor]): Weights, in the names of timm's whole model or of the extractor.
        name (str): The model's name in timm.
        path (Path): Where they are from, for messages.

    Raises:
        ValueError: If they do not fit; the message lists the tensors.
    """
    wanted = features.state_dict()
    # timm's feature extractors rename `stages.0` to `stages_0` or prefix `model.`; files have the model's names.
    by_plain_name = {_plain_name(key): key for key in state}
    source = {key: by_plain_name.get(_plain_name(key), key) for key in wanted}
    optional = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = sorted(key for key in wanted if source[key] not in state and key not in optional)
    misshaped = [
        f"{source[key]} {tuple(state[source[key]].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if source[key] in state and state[source[key]].shape != tensor.shape
    ]
    with torch.device("meta"):
        known = {*source.values(), *wanted, *timm.create_model(name, pretrained=False).state_dict()}
    unexpected = sorted(set(state) - known)
    problems = [
        f"{label}: {', '.join(keys)}"
        for label, keys in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshaped))
        if keys
    ]
    if problems:
        raise InputError(f"backbone_weights: {str(path)!r} does not fit the backbone {name!r}. {'; '.join(problems)}.")
    features.load_state_dict({key: state.get(source[key], tensor) for key, tensor in wanted.items()})


def _plain_name(key: str) -> str:
    return key.removeprefix("model.").replace(".", "_")
