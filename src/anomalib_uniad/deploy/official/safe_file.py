# SPDX-License-Identifier: Apache-2.0
"""Reads a checkpoint of the authors' code without executing anything of it."""

import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomalib_uniad.checks import show
from anomalib_uniad.errors import InputError, MissingFileError

_SHOWN = 5  # tensors named in a message


@dataclass
class OfficialFile:
    """Content of a checkpoint."""

    state: dict[str, torch.Tensor]  # all weights, without the prefix "module." of distributed training
    arch: dict[str, dict[str, Any]]  # part (backbone, neck, reconstruction) -> type and kwargs; empty without config
    epoch: int | None  # of training, if the file has it


def read_official(path: Path) -> OfficialFile:
    """Read a checkpoint, or a state dict alone.

    ``ValueError`` if it is not a checkpoint, or has objects of classes other than tensors, plain data and EasyDict,
    which are never built.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no checkpoint {str(path)!r}.")
    content = _load(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{str(path)!r} holds a {type(content).__name__}, not a checkpoint with a state_dict.")
    if "pytorch-lightning_version" in content:
        raise InputError(f"{str(path)!r} is a Lightning checkpoint already; use it with --ckpt_path as it is.")
    if "state_dict" not in content:
        content = {"state_dict": content}
    state = content["state_dict"]
    if not isinstance(state, Mapping) or not state or not all(isinstance(x, torch.Tensor) for x in state.values()):
        others = [str(key) for key, x in state.items() if not isinstance(x, torch.Tensor)][:_SHOWN] if state else []
        msg = f"{str(path)!r} has no state_dict that maps names to tensors{f'; {others} are none' if others else ''}."
        raise InputError(msg)
    broken = [str(key) for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        names = ", ".join(broken[:_SHOWN])
        raise InputError(f"{str(path)!r} is damaged: values of {names} are not finite ({len(broken)} tensors).")
    epoch = content.get("epoch")
    return OfficialFile(
        state={str(key).removeprefix("module."): tensor for key, tensor in state.items()},
        arch=_parts(_plain(content.get("arch")), path),
        epoch=epoch if isinstance(epoch, int) else None,
    )


def _load(path: Path) -> Any:
    # torch's restricted unpickler fills an OrderedDict and sets its attributes, so that it can stand for EasyDict. The
    # best metric is a numpy scalar, which is built by a function from a dtype.
    scalar, _ = np.float64(0).__reduce__()
    known: list[Any] = [
        (OrderedDict, "easydict.EasyDict"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (np.dtype, "numpy.dtype"),
        *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    ]
    if zipfile.is_zipfile(path):  # torch does not compare the check sums in it
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            msg = f"{str(path)!r} is damaged: the check sum of {damaged} in it is another one. Copy it again."
            raise InputError(msg)
    try:
        with torch.serialization.safe_globals(known):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            msg = (
                f"{str(path)!r} holds an object of {foreign[1]}, which is not needed for weights and could run code. "
                "Nothing of the file was executed. Write a file without it where it comes from, with "
                "torch.save({'state_dict': ..., 'arch': ...}, ...)."
            )
        else:
            # Not torch's own text, which recommends to load the file without restrictions.
            msg = f"{str(path)!r} cannot be read as a checkpoint of torch: it is another kind of file, or damaged."
        raise InputError(msg) from error


def _parts(arch: Any, path: Path) -> dict[str, dict[str, Any]]:
    """The list of parts in the authors' config, by name."""
    if arch is None:
        return {}
    if not isinstance(arch, list) or not all(isinstance(p, dict) and isinstance(p.get("name"), str) for p in arch):
        raise InputError(f"arch in {str(path)!r} is not the authors' list of parts with names.")
    for part in arch:
        if not isinstance(part.get("kwargs") or {}, dict):
            raise InputError(
                f"arch in {str(path)!r}: the kwargs of {part['name']} are {show(part['kwargs'])}, not a dict."
            )
    return {part["name"]: {"type": part.get("type", ""), "kwargs": part.get("kwargs") or {}} for part in arch}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
