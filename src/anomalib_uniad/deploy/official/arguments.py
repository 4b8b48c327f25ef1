# SPDX-License-Identifier: Apache-2.0
"""Arguments of UniAD for a checkpoint of the authors' code: from its tensors, its config, else the paper's defaults."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from anomalib_uniad.errors import InputError

from . import backbone as backbones

Config = Mapping[str, Mapping[str, Any]]


def arguments_of(
    state: Mapping[str, torch.Tensor], arch: Config, backbone: str, given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Find all arguments of ``UniAD`` that predictions and training depend on, and where each is from.

    ``state`` has the weights of the authors' reconstruction module without prefix, ``arch`` their config by part,
    ``given`` the user's arguments. A source is ``"given"``, ``"tensors"``, ``"arch"`` or ``"default"``. ``ValueError``
    if something is missing, contradicts the tensors or is not built here.
    """
    given = _as_lists(given)
    kwargs = arch.get("reconstruction", {}).get("kwargs", {})
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def put(name: str, *, tensors: Any = None, arch: Any = None, default: Any = None) -> None:
        """What the tensors show, which nothing may contradict, else what was given, in the config, or the default."""
        known = {"tensors": tensors, "given": given.get(name), "arch": arch, "default": default}
        for source, origin in (("given", "you gave"), ("arch", "the config in the checkpoint (arch) says")):
            if tensors is not None and known[source] not in (None, tensors):
                msg = f"{name}: the tensors of the checkpoint are of {tensors}, but {origin} {known[source]}."
                raise InputError(msg)
        source = next((source for source, value in known.items() if value is not None), "default")
        values[name], sources[name] = known[source], source

    for name, only in (("activation", "relu"), ("normalize_before", False)):
        if kwargs.get(name, only) != only:
            raise InputError(f"The checkpoint was trained with {name}={kwargs[name]!r}; only {only!r} is built here.")

    _check_backbone(backbone, arch, given)
    put("backbone", tensors=None if "backbone" in given else backbone)
    hidden_dim, channels = state["input_proj.weight"].shape
    taps = backbones.taps_of(backbone, arch.get("backbone", {}).get("kwargs", {}))
    put("layers", arch=taps, default=[1, 2, 3, 4] if backbone in backbones.RESNETS else [0, 1, 2, 3])
    _check_channels(backbone, values["layers"], channels)

    strides = arch.get("neck", {}).get("kwargs", {}).get("outstrides")
    stride_in_arch = strides[0] if isinstance(strides, list) and len(strides) == 1 else None
    stride = given.get("feature_stride") or stride_in_arch or 16
    grid_in_arch = _pair(kwargs.get("feature_size"))
    grid = _grid(state, stride, grid_in_arch, given.get("image_size"))
    size_in_arch = None if grid_in_arch is None else [side * stride for side in grid_in_arch]
    put("image_size", tensors=[side * stride for side in grid], arch=size_in_arch)
    put("feature_stride", arch=stride_in_arch, default=16)

    feedforward_dim = state["transformer.encoder.layers.0.linear1.weight"].shape[0]
    put("hidden_dim", tensors=hidden_dim, arch=kwargs.get("hidden_dim"))
    put("num_encoder_layers", tensors=_count_layers(state, "encoder"), arch=kwargs.get("num_encoder_layers"))
    put("num_decoder_layers", tensors=_count_layers(state, "decoder"), arch=kwargs.get("num_decoder_layers"))
    put("feedforward_dim", tensors=feedforward_dim, arch=kwargs.get("dim_feedforward"))
    position = kwargs.get("pos_embed_type")
    put(
        "position_embedding",
        tensors="learned" if "pos_embed.row_embed.weight" in state else "sine",
        arch={"v2": "sine", "v3": "learned"}.get(position, position),  # the authors' other names
    )
    put("num_heads", arch=kwargs.get("nhead"), default=8)
    put("dropout", arch=kwargs.get("dropout"), default=0.1)
    # Both parts may be None in the config, which switches them off.
    neighbors = kwargs.get("neighbor_mask", {})
    neighbors = {"mask": [False] * 3} if neighbors is None else neighbors
    put("neighbor_size", arch=_pair(neighbors.get("neighbor_size")), default=[7, 7])
    put("neighbor_mask", arch=neighbors.get("mask"), default=[True] * 3)
    jitter = kwargs.get("feature_jitter", {})
    jitter = {"prob": 0.0} if jitter is None else jitter
    put("jitter_scale", arch=jitter.get("scale"), default=20.0)
    put("jitter_probability", arch=jitter.get("prob"), default=1.0)
    put("backbone_padding", default="static")
    put("backbone_padding_mode", default="zeros")
    put("image_score", default="max")
    put("score_pool_size", default=16)

    whole = ("num_heads", "feature_stride")
    for name in (*whole, "dropout", "jitter_scale", "jitter_probability"):
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, int if name in whole else (int, float)):
            raise InputError(f"{name} ({sources[name]}) is {value!r}, not a number.")
    return values, sources


def _as_lists(given: Mapping[str, Any]) -> dict[str, Any]:
    """Bring what was given into the form that the tensors and the config have."""
    result = {name: value for name, value in given.items() if value is not None}
    for name in ("image_size", "neighbor_size"):
        if name in result:
            result[name] = _pair(result[name])
    if "layers" in result:
        result["layers"] = list(result["layers"])
    if "neighbor_mask" in result:
        mask = result["neighbor_mask"]
        result["neighbor_mask"] = [mask] * 3 if isinstance(mask, bool) else list(mask)
    return result


def _pair(value: Any) -> list[int] | None:
    if value is None:
        return None
    return [value, value] if isinstance(value, int) else list(value)


def _check_backbone(backbone: str, arch: Config, given: Mapping[str, Any]) -> None:
    """Refuse the name of another network, in the config or given; the tag of timm's weights may be another one."""

    def network(name: str) -> str:
        return name.split(".")[0].removeprefix("tf_")

    in_arch = str(arch.get("backbone", {}).get("type", "")).rpartition(".")[2]
    known = {network(name) for name in (*backbones.EFFICIENTNETS, *backbones.RESNETS)}
    if in_arch in known and in_arch != network(backbone):
        msg = f"The backbone's tensors are of {network(backbone)}, but the config in the file (arch) says {in_arch}."
        raise InputError(msg)
    name = given.get("backbone", backbone)
    if name.split(".")[0] != backbone.split(".")[0]:
        msg = f"backbone: the tensors of the file are of {backbone}, but you gave {name}, which is another network."
        raise InputError(msg)


def _check_channels(backbone: str, layers: list[Any], channels: int) -> None:
    info = backbones.feature_info(backbone)
    names = [item["module"] for item in info]
    chosen = [names.index(layer) if layer in names else layer for layer in layers]
    if any(layer not in range(len(info)) for layer in chosen):
        raise InputError(f"{backbone} has no layers {layers}; it has {list(range(len(info)))}, which are {names}.")
    total = sum(info[layer]["num_chs"] for layer in chosen)
    if total != channels:
        each = {index: item["num_chs"] for index, item in enumerate(info)}
        raise InputError(
            f"The transformer in the checkpoint takes {channels} channels, but layers {layers} of {backbone} have "
            f"{total}. Give the layers that it was trained on; their channels are {each}."
        )


def _grid(
    state: Mapping[str, torch.Tensor], stride: int, in_arch: list[int] | None, image_size: list[int] | None
) -> list[int]:
    """Tokens in height and width: from the tables of positions; sine positions have none."""
    tokens = state["transformer.decoder.layers.0.learned_embed.weight"].shape[0]
    if "pos_embed.row_embed.weight" in state:
        grid = [state[f"pos_embed.{part}_embed.weight"].shape[0] for part in ("row", "col")]
    elif image_size is not None:
        grid = [side // stride for side in image_size]
    else:
        grid = in_arch or [math.isqrt(tokens)] * 2
    if grid[0] * grid[1] != tokens:
        raise InputError(
            f"The queries of the checkpoint are of {tokens} tokens, which is no grid of {grid[0]} x {grid[1]}. Give "
            "image_size (height and width)."
        )
    return grid


def _count_layers(state: Mapping[str, torch.Tensor], part: str) -> int:
    pattern = re.compile(rf"transformer\.{part}\.layers\.(\d+)\.")
    return 1 + max(int(match[1]) for key in state if (match := pattern.match(key)))
