# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the format of the authors' code, with generated weights."""

import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

Keys = Sequence[tuple[str, Sequence[int], str]]


def generate(keys: Keys, seed: int) -> dict[str, torch.Tensor]:
    """Weights by the rules of tests/golden/README.md.

    Args:
        keys: Name, shape and type of each tensor.
        seed: Seed of all of them.
    """
    state = {}
    for number, (key, shape, dtype) in enumerate(keys):
        random = np.random.default_rng([seed, number])
        if dtype == "int64":
            values = np.zeros(shape)
        elif key.endswith("running_var"):
            values = random.uniform(0.5, 1.5, shape)
        elif key.endswith("running_mean"):
            values = random.normal(0, 0.1, shape)
        elif len(shape) == 1 and key.endswith("weight"):
            values = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = random.normal(0, 0.05, shape)
        elif "_embed" in key:
            values = random.normal(0, 1, shape)
        elif len(shape) == 4:
            values = random.normal(0, np.sqrt(2) / np.sqrt(np.prod(shape[1:])), shape)
        else:
            values = random.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
        state[key] = torch.from_numpy(np.asarray(values)).to(torch.int64 if dtype == "int64" else torch.float32)
    return state


class EasyDict(dict):
    """Pickled like the package's class: a dict whose items are attributes as well."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        super().__init__()
        for key, value in items.items():
            plain = [EasyDict(x) if isinstance(x, dict) else x for x in value] if isinstance(value, list) else value
            self[key] = EasyDict(plain) if isinstance(plain, dict) else plain
            self.__dict__[key] = self[key]


@contextmanager
def easydict_installed() -> Iterator[None]:
    """Pretend that the package is there, to write files as it would."""
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict
    before = EasyDict.__module__, EasyDict.__qualname__
    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    sys.modules["easydict"] = module
    try:
        yield
    finally:
        del sys.modules["easydict"]
        EasyDict.__module__, EasyDict.__qualname__ = before


ARCH: list[dict[str, Any]] = [
    {
        "name": "backbone",
        "type": "models.backbones.efficientnet_b4",
        "frozen": True,
        "kwargs": {"pretrained": True, "outblocks": [1, 5, 9, 21], "outstrides": [2, 4, 8, 16]},
    },
    {"name": "neck", "prev": "backbone", "type": "models.necks.MFCN", "kwargs": {"outstrides": [16]}},
    {
        "name": "reconstruction",
        "prev": "neck",
        "type": "models.reconstructions.UniAD",
        "kwargs": {
            "pos_embed_type": "learned",
            "hidden_dim": 256,
            "nhead": 8,
            "num_encoder_layers": 4,
            "num_decoder_layers": 4,
            "dim_feedforward": 1024,
            "dropout": 0.1,
            "activation": "relu",
            "normalize_before": False,
            "feature_size": [14, 14],
            "feature_jitter": {"scale": 20.0, "prob": 1.0},
            "neighbor_mask": {"neighbor_size": [7, 7], "mask": [True, True, True]},
        },
    },
]


def write_official(
    path: Path, state: Mapping[str, torch.Tensor], arch: list[dict[str, Any]] | None = ARCH, **more: Any
) -> Path:
    """Write a checkpoint as the authors' training does.

    Args:
        path: The file.
        state: All weights, with their prefix.
        arch: Config of the network; None leaves it out.
        more: Further entries.
    """
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    content = {"epoch": 7, "state_dict": dict(state), "best_metric": np.float64(0.97), "optimizer": optimizer, **more}
    with easydict_installed():
        if arch is not None:
            content["arch"] = [EasyDict(part) for part in arch]
        torch.save(content, path)
    return path


def small_keys(prefix: str = "module.", backbone: Mapping[str, Sequence[int]] | None = None, **sizes: int) -> Keys:
    """Names and shapes of a small UniAD.

    Args:
        prefix: Before each name.
        backbone: Names and shapes of the backbone's tensors.
        sizes: channels, hidden, height, width, layers, feedforward.
    """
    channels, hidden = sizes.get("channels", 112), sizes.get("hidden", 16)
    height, width = sizes.get("height", 4), sizes.get("width", 4)
    layers, feedforward = sizes.get("layers", 1), sizes.get("feedforward", 32)
    shapes: dict[str, Sequence[int]] = {f"backbone.{key}": shape for key, shape in (backbone or {}).items()}
    start = "reconstruction.transformer"
    attention = {
        "in_proj_weight": (3 * hidden, hidden),
        "in_proj_bias": (3 * hidden,),
        "out_proj.weight": (hidden, hidden),
        "out_proj.bias": (hidden,),
    }
    rest = {
        "linear1.weight": (feedforward, hidden),
        "linear1.bias": (feedforward,),
        "linear2.weight": (hidden, feedforward),
        "linear2.bias": (hidden,),
    }
    for kind, attentions, norms in (("encoder", ["self_attn"], 2), ("decoder", ["self_attn", "multihead_attn"], 3)):
        for layer in range(layers):
            place = f"{start}.{kind}.layers.{layer}"
            if kind == "decoder":
                shapes[f"{place}.learned_embed.weight"] = (height * width, hidden)
            for name in attentions:
                shapes |= {f"{place}.{name}.{key}": shape for key, shape in attention.items()}
            shapes |= {f"{place}.{key}": shape for key, shape in rest.items()}
            for norm in range(1, norms + 1):
                shapes |= {f"{place}.norm{norm}.{part}": (hidden,) for part in ("weight", "bias")}
    shapes |= {f"{start}.decoder.norm.{part}": (hidden,) for part in ("weight", "bias")}
    shapes |= {"reconstruction.pos_embed.row_embed.weight": (height, hidden // 2)}
    shapes |= {"reconstruction.pos_embed.col_embed.weight": (width, hidden // 2)}
    shapes |= {"reconstruction.input_proj.weight": (hidden, channels), "reconstruction.input_proj.bias": (hidden,)}
    shapes |= {"reconstruction.output_proj.weight": (channels, hidden), "reconstruction.output_proj.bias": (channels,)}
    return [
        (prefix + key, shape, "int64" if key.endswith("num_batches_tracked") else "float32")
        for key, shape in shapes.items()
    ]
