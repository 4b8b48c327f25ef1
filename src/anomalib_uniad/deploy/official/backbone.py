# SPDX-License-Identifier: Apache-2.0
"""Names of backbone weights: in the authors' code those of EfficientNet-PyTorch and torchvision, here those of timm."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from anomalib_uniad.errors import InputError

# Candidates, in timm's names. The weights that a tag stands for are not loaded; it tells the native resolution.
EFFICIENTNETS = tuple(f"tf_efficientnet_b{number}.aa_in1k" for number in range(7))
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")

_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand", "_depthwise_conv": "conv_dw"}
_PLAIN_BLOCK = {**_SQUEEZE, "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_EXPANDING_BLOCK = {
    **_SQUEEZE,
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def identify(state: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, str]]:
    """Find the backbone of the authors' weights (without prefix): its name in timm, and that of each tensor.

    ``ValueError`` if none of the known backbones has these tensors; the message tells what differs from the closest.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    is_efficientnet = "_conv_stem.weight" in state
    candidates = EFFICIENTNETS if is_efficientnet else RESNETS
    found: dict[str, list[str]] = {}
    for name in candidates:
        names = names_in_timm(name, state) if is_efficientnet else {key: key for key in state}
        found[name] = differences(name, shapes, names)
        if not found[name]:
            return name, names
    closest = min(found, key=lambda name: len(found[name]))
    raise InputError(
        f"The backbone in the checkpoint is none of {', '.join(candidates)}. Of {closest}, "
        f"{len(found[closest])} tensors differ: {', '.join(found[closest][:6])}."
    )


def names_in_timm(name: str, keys: Iterable[str]) -> dict[str, str]:
    """Name of each tensor of EfficientNet-PyTorch in timm's model ``name``; the same name if it has none there."""
    depths = _depths(name)
    return {key: _timm_name(key, depths) for key in keys}


def differences(name: str, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]) -> list[str]:
    """List what keeps weights from being those of timm's model ``name``; its classifier may be missing.

    ``shapes`` are those of the tensors, ``names`` their names in timm.
    """
    expected, present = shapes_of(name), set(names.values())
    wrong = [key for key, other in names.items() if expected.get(other, shapes[key]) != shapes[key]]
    missing = sorted(key for key in expected if key not in present and not _is_head(key))
    unknown = [key for key, other in names.items() if other not in expected]
    return [
        *(f"{key} {shapes[key]} is not {expected[names[key]]}" for key in wrong),
        *(f"{key} is missing" for key in missing),
        *(f"{key} is unknown" for key in unknown),
    ]


def taps_of(name: str, kwargs: Mapping[str, Any]) -> list[int] | None:
    """Find timm's maps for the taps in the authors' config: their indices, ``None`` if it has no taps.

    The authors' backbone has ``outblocks`` (numbers of blocks, counted through all stages) or ``outlayers`` (of a
    ResNet, 1 to 4), and ``outstrides``. ``ValueError`` if timm has no map there.
    """
    info = feature_info(name)
    if "outblocks" in kwargs:
        depths = _depths(name)
        last_blocks = [sum(depths[: stage + 1]) - 1 for stage in range(len(depths))]  # of each stage
        known = {last_blocks[int(item["module"].split(".")[1])]: index for index, item in enumerate(info)}
        what = "outblocks"
    elif "outlayers" in kwargs:
        known = {layer: layer for layer in range(1, len(info))}  # timm's map 0 is that of the stem
        what = "outlayers"
    elif "outstrides" in kwargs:
        known = {item["reduction"]: index for index, item in enumerate(info)}
        what = "outstrides"
    else:
        return None
    wanted = kwargs[what]
    missing = [tap for tap in wanted if tap not in known]
    if missing:
        msg = f"timm's {name} has no maps at {what} {missing}, only at {sorted(known)}; give layers yourself."
        raise InputError(msg)
    taps = [known[tap] for tap in wanted]
    if taps != sorted(set(taps)):  # the authors' code joins their channels in this order, timm from shallow to deep
        msg = f"{what} {wanted} are not in the order of the backbone, or repeated; maps are taken shallow to deep."
        raise InputError(msg)
    return taps


@cache
def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a model of timm."""
    return {key: tuple(tensor.shape) for key, tensor in _on_meta(name).state_dict().items()}


def feature_info(name: str) -> Sequence[dict[str, Any]]:
    """``num_chs``, ``reduction`` and ``module`` of each map of a model of timm."""
    features: Any = _on_meta(name, features_only=True)
    return features.feature_info.info


@cache
def _on_meta(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):  # names and shapes only
        return timm.create_model(name, pretrained=False, **kwargs)


def _depths(name: str) -> list[int]:
    blocks: Any = _on_meta(name).blocks
    return [len(stage) for stage in blocks]


def _timm_name(key: str, depths: Sequence[int]) -> str:
    """Name in timm of a tensor of EfficientNet-PyTorch; the key itself if there is none."""
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([_STEM.get(parts[0], parts[0]), *parts[1:]])
    number, stage = int(parts[1]), 0
    while stage < len(depths) and number >= depths[stage]:
        number, stage = number - depths[stage], stage + 1
    names = _PLAIN_BLOCK if stage == 0 else _EXPANDING_BLOCK  # the first stage does not expand
    return ".".join(["blocks", str(stage), str(number), names.get(parts[2], parts[2]), *parts[3:]])


def _is_head(key: str) -> bool:
    return key.startswith(("classifier.", "fc.", "conv_head.", "bn2.")) or key.endswith("num_batches_tracked")
