# SPDX-License-Identifier: Apache-2.0
"""Arguments of UniAD for a checkpoint of the authors' code: from its tensors, its config, else the paper's defaults."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from . import backbone as backbones

_WHOLE = ("num_heads", "feature_stride")
_LAYER = re.compile(r"^transformer\.(encoder|decoder)\.layers\.(\d+)\.")


@dataclass
class Arguments:
    """Arguments and where they are from.

    Attributes:
        values (dict[str, Any]): Name of an argument of ``UniAD`` -> its value.
        sources (dict[str, str]): Name -> ``"given"``, ``"tensors"``, ``"arch"`` or ``"default"``.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, tensors: Any = None, given: Any = None, arch: Any = None, default: Any = None) -> None:
        """Set an argument: what the tensors say, else what was given, what the config says, or the default.

        Raises:
            ValueError: If something else than the tensors say was given or is in the config.
        """
        for source, value in (("given", given), ("arch", arch)):
            if tensors is not None and value is not None and value != tensors:
                origin = "you gave" if source == "given" else "the config in the checkpoint (arch) says"
                msg = f"{name}: the tensors of the checkpoint are of {tensors}, but {origin} {value}."
                raise ValueError(msg)
        known = {"tensors": tensors, "given": given, "arch": arch, "default": default}
        source = next((source for source, value in known.items() if value is not None), "default")
        self.values[name], self.sources[name] = known[source], source


def arguments_of(
    state: Mapping[str, torch.Tensor],
    arch: Mapping[str, Mapping[str, Any]],
    backbone: str,
    given: Mapping[str, Any],
) -> Arguments:
    """Find the arguments of the model.

    Args:
        state (Mapping[str, torch.Tensor]): Weights of the authors' reconstruction module, without prefix.
        arch (Mapping[str, Mapping[str, Any]]): The authors' config, by part; may be empty.
        backbone (str): The backbone's name in timm, from its tensors.
        given (Mapping[str, Any]): Arguments that the user has given.

    Returns:
        Arguments: All that the predictions and the training depend on.

    Raises:
        ValueError: If something is missing, contradicts the tensors or is not built here.
    """
    kwargs, result = arch.get("reconstruction", {}).get("kwargs", {}), Arguments()
    _refuse_other_transformers(kwargs)
    _put_backbone(result, backbone, arch, given)
    hidden_dim, channels = state["input_proj.weight"].shape
    layers = arch.get("backbone", {}).get("kwargs", {})
    result.put(
        "layers",
        given=_as_list(given.get("layers")),
        arch=backbones.taps_of(backbone, layers),
        default=[1, 2, 3, 4] if backbone in backbones.RESNETS else [0, 1, 2, 3],
    )
    _check_channels(backbone, result.values["layers"], channels)
    stride, grid = _grid(state, arch, given)
    in_arch = [size * stride for size in _pair(kwargs.get("feature_size")) or []] or None
    in_tensors = [size * stride for size in grid]
    result.put("image_size", tensors=in_tensors, given=_pair(given.get("image_size")), arch=in_arch)
    result.put("feature_stride", given=given.get("feature_stride"), arch=_neck_stride(arch), default=16)
    counts = dict.fromkeys(("encoder", "decoder"), 0)
    for key in state:
        if match := _LAYER.match(key):
            counts[match[1]] = max(counts[match[1]], int(match[2]) + 1)
    feedforward_dim = state["transformer.encoder.layers.0.linear1.weight"].shape[0]
    for name, tensors, name_in_arch in (
        ("hidden_dim", hidden_dim, "hidden_dim"),
        ("num_encoder_layers", counts["encoder"], "num_encoder_layers"),
        ("num_decoder_layers", counts["decoder"], "num_decoder_layers"),
        ("feedforward_dim", feedforward_dim, "dim_feedforward"),
    ):
        result.put(name, tensors=tensors, given=given.get(name), arch=kwargs.get(name_in_arch))
    learned = "pos_embed.row_embed.weight" in state
    position = "learned" if learned else "sine"
    result.put(
        "position_embedding", position, given.get("position_embedding"), _position_name(kwargs.get("pos_embed_type"))
    )
    result.put("num_heads", given=given.get("num_heads"), arch=kwargs.get("nhead"), default=8)
    result.put("dropout", given=given.get("dropout"), arch=kwargs.get("dropout"), default=0.1)
    _put_neighbors(result, kwargs, given)
    _put_jitter(result, kwargs, given)
    for name, default in (
        ("backbone_padding", "static"),
        ("backbone_padding_mode", "zeros"),
        ("image_score", "max"),
        ("score_pool_size", 16),
    ):
        result.put(name, given=given.get(name), default=default)
    for name in (*_WHOLE, "dropout", "jitter_scale", "jitter_probability"):
        value = result.values[name]
        if isinstance(value, bool) or not isinstance(value, int if name in _WHOLE else (int, float)):
            msg = f"{name} ({result.sources[name]}) is {value!r}, not a number."
            raise ValueError(msg)
    return result


def _put_backbone(
    result: Arguments, backbone: str, arch: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> None:
    def network(name: str) -> str:
        return name.split(".")[0].removeprefix("tf_")  # without the tag of timm's weights

    in_arch = str(arch.get("backbone", {}).get("type", "")).rpartition(".")[2]
    known = {network(name) for name in (*backbones.EFFICIENTNETS, *backbones.RESNETS)}
    if in_arch in known and in_arch != network(backbone):
        msg = f"The backbone's tensors are of {network(backbone)}, but the config in the file (arch) says {in_arch}."
        raise ValueError(msg)
    name = given.get("backbone")
    if name is not None and name.split(".")[0] != backbone.split(".")[0]:
        msg = f"backbone: the tensors of the file are of {backbone}, but you gave {name}, which is another network."
        raise ValueError(msg)
    if name is None:
        result.put("backbone", tensors=backbone)
    else:  # the same network under another tag
        result.put("backbone", given=name)


def _put_neighbors(result: Arguments, kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    size = mask = None
    if "neighbor_mask" in kwargs:  # None: no mask at all
        neighbors = kwargs["neighbor_mask"] or {"mask": [False] * 3}
        size, mask = _pair(neighbors.get("neighbor_size")), neighbors.get("mask")
    result.put("neighbor_size", given=_pair(given.get("neighbor_size")), arch=size, default=[7, 7])
    wanted = given.get("neighbor_mask")
    result.put(
        "neighbor_mask",
        given=[wanted] * 3 if isinstance(wanted, bool) else _as_list(wanted),
        arch=mask,
        default=[True] * 3,
    )


def _put_jitter(result: Arguments, kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    scale = probability = None
    if "feature_jitter" in kwargs:  # None: no jitter at all
        jitter = kwargs["feature_jitter"] or {"prob": 0.0}
        scale, probability = jitter.get("scale"), jitter.get("prob")
    result.put("jitter_scale", given=given.get("jitter_scale"), arch=scale, default=20.0)
    result.put("jitter_probability", given=given.get("jitter_probability"), arch=probability, default=1.0)


def _refuse_other_transformers(kwargs: Mapping[str, Any]) -> None:
    """The authors' code has switches that their configs and this package do not use."""
    for name, known in (("activation", "relu"), ("normalize_before", False)):
        if kwargs.get(name, known) != known:
            msg = f"The checkpoint was trained with {name}={kwargs[name]!r}; only {known!r} is built here."
            raise ValueError(msg)


def _grid(
    state: Mapping[str, torch.Tensor], arch: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any]
) -> tuple[int, list[int]]:
    """Pixels per token, and tokens in height and width."""
    stride = given.get("feature_stride") or _neck_stride(arch) or 16
    tokens = state["transformer.decoder.layers.0.learned_embed.weight"].shape[0]
    size = arch.get("reconstruction", {}).get("kwargs", {}).get("feature_size")
    if "pos_embed.row_embed.weight" in state:
        grid = [state[f"pos_embed.{part}_embed.weight"].shape[0] for part in ("row", "col")]
    elif given.get("image_size") is not None:
        grid = [size // stride for size in _pair(given["image_size"]) or []]
    elif size is not None:
        grid = _pair(size) or []
    else:
        grid = [math.isqrt(tokens)] * 2
    if grid[0] * grid[1] != tokens:
        msg = (
            f"The queries of the checkpoint are of {tokens} tokens, which is no grid of {grid[0]} x {grid[1]}. Give "
            "image_size (height and width)."
        )
        raise ValueError(msg)
    return stride, grid


def _neck_stride(arch: Mapping[str, Mapping[str, Any]]) -> int | None:
    strides = arch.get("neck", {}).get("kwargs", {}).get("outstrides")
    return strides[0] if isinstance(strides, list) and len(strides) == 1 else None


def _check_channels(backbone: str, layers: list[Any], channels: int) -> None:
    info = backbones.feature_info(backbone)
    names = [item["module"] for item in info]
    chosen = [names.index(layer) if layer in names else layer for layer in layers]
    if any(layer not in range(len(info)) for layer in chosen):
        msg = f"{backbone} has no layers {layers}; it has {list(range(len(info)))}, which are {names}."
        raise ValueError(msg)
    total = sum(info[layer]["num_chs"] for layer in chosen)
    if total != channels:
        each = {index: item["num_chs"] for index, item in enumerate(info)}
        msg = (
            f"The transformer in the checkpoint takes {channels} channels, but layers {layers} of {backbone} have "
            f"{total}. Give the layers that it was trained on; their channels are {each}."
        )
        raise ValueError(msg)


def _position_name(name: Any) -> Any:
    """The authors' names of the two kinds."""
    return {"v2": "sine", "v3": "learned"}.get(name, name)


def _pair(value: Any) -> list[int] | None:
    if value is None:
        return None
    return [value, value] if isinstance(value, int) else list(value)


def _as_list(value: Any) -> list[Any] | None:
    return None if value is None else list(value)
