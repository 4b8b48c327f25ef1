# SPDX-License-Identifier: Apache-2.0
"""What cached features depend on: images, transforms, backbone, versions."""

import hashlib
import json
import os
from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from anomalib.data.transforms import ExportableCenterCrop, SquarePad
from torch import nn
from torchvision.transforms import v2

from anomalib_uniad.errors import InputError
from anomalib_uniad.files import version_of
from anomalib_uniad.transforms import CropAndPad

FORMAT_VERSION = 1
PACKAGES = ("anomalib_uniad", "anomalib", "torch", "torchvision", "timm", "pillow")

# Exact types: a subclass may do anything.
_CONTAINERS = (v2.Compose, nn.Sequential, nn.ModuleList)
DETERMINISTIC = frozenset(
    {
        v2.CenterCrop,
        v2.ConvertImageDtype,
        v2.Grayscale,
        v2.Identity,
        v2.Normalize,
        v2.Pad,
        v2.PILToTensor,
        v2.RGB,
        v2.Resize,
        v2.ToDtype,
        v2.ToImage,
        v2.ToPureTensor,
        CropAndPad,
        ExportableCenterCrop,
        SquarePad,
        nn.Identity,
    }
)


def key_parts(
    dataset: Any, transform: Any, model: nn.Module, dtype: str, device_type: str, masks: bool
) -> dict[str, Any]:
    """Collect everything but its files that the features of a dataset depend on, as plain data."""
    readers = [type(part) for part in getattr(dataset, "parts", (dataset,))]
    return {
        "format": FORMAT_VERSION,
        "dataset": " and ".join(dict.fromkeys(f"{reader.__module__}.{reader.__qualname__}" for reader in readers)),
        "versions": {package: version_of(package) for package in PACKAGES},
        "masks": masks and str(dataset.samples.attrs.get("task")),  # without masks, normal images have none either
        "value_range": _plain(getattr(dataset, "value_range", None)),
        "augmentations": describe_transform(getattr(dataset, "augmentations", None)),
        "pre_processor": describe_transform(transform),
        "extractor": describe_extractor(model),
        "dtype": dtype,
        "device": device_type,  # "cpu", "cuda" and others differ in the last bits
    }


def key_of(parts: dict[str, Any]) -> str:
    """Return the name of the cache that is made of these parts: 32 hexadecimal digits."""
    return digest_of(parts)[:32]


def digest_of(data: Any) -> str:
    """Return the digest of plain data, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def describe_files(dataset: Any, masks: bool, rows: Sequence[int] | None = None) -> list[Any]:
    """List image, label and, if wanted, masks of each image of a dataset, with what shows that a file has changed.

    That is size and time of modification, or for all files the attribute ``content_key`` (str) of the dataset. ``rows``
    are those that are listed; ``None`` is all.
    """
    samples, content = dataset.samples, getattr(dataset, "content_key", None)
    if rows is not None:
        samples = samples.iloc[rows]

    def describe(path: Any) -> Any:
        if isinstance(path, (list, tuple)):  # MVTec LOCO has several masks per image
            return [describe(part) for part in path]
        if not isinstance(path, (str, os.PathLike)) or not str(path):  # no mask: None, NaN or ""
            return None
        if content is not None:
            return str(path)
        try:
            status = os.stat(path)  # noqa: PTH116 - Path.stat takes three times as long
        except OSError as error:
            raise InputError(
                f"The feature cache cannot see whether {str(path)!r} has changed: {error.strerror or error}. If the "
                "images are not files, give the dataset an attribute content_key, a string that changes with their "
                "contents; or train without the cache (feature_cache=off)."
            ) from error
        return [os.path.realpath(path), status.st_size, status.st_mtime_ns]

    labels = samples["label_index"] if "label_index" in samples else [None] * len(samples)
    paths = samples["mask_path"] if masks and "mask_path" in samples else [None] * len(samples)
    # In a set that has images without masks, a normal image can have an empty mask or none.
    masked = samples["has_masks"] if masks and "has_masks" in samples else [True] * len(samples)
    listed: list[Any] = [
        [describe(image), None if label is None else int(label), describe(mask) if has_mask else "none"]
        for image, label, mask, has_mask in zip(samples["image_path"], labels, paths, masked, strict=True)
    ]
    return listed if content is None else [str(content), *listed]


def check_deterministic(transform: Any, where: str) -> None:
    """Refuse transforms that may give something else the next time; ``where`` is what the user calls them."""
    if type(transform) in _CONTAINERS:
        for part in _parts(transform):
            check_deterministic(part, where)
    elif transform is not None and type(transform) not in DETERMINISTIC:
        raise InputError(
            f"The feature cache computes the features of an image once, but {where} has {type(transform).__name__}, "
            "which is random or not known to be deterministic. Remove it, or train without the cache "
            "(feature_cache=off)."
        )


def describe_transform(transform: Any) -> Any:
    """Describe a deterministic transform with all of its arguments; its ``repr`` leaves some out.

    Examples:
        >>> describe_transform(v2.Compose([v2.ToDtype(torch.float32, scale=True)]))
        [{'ToDtype': {'dtype': 'torch.float32', 'scale': True}}]
    """
    if transform is None:
        return None
    if type(transform) in _CONTAINERS:
        return [describe_transform(part) for part in _parts(transform)]
    arguments = {
        name: _plain(value)
        for name, value in sorted(vars(transform).items())
        if not name.startswith("_") and name != "training"
    }
    return {type(transform).__name__: arguments}


def describe_extractor(model: nn.Module) -> dict[str, Any]:
    """Describe what turns images into features: ``backbone``, and the model's ``neck`` and sizes, if it has them."""
    backbone: Any = model.backbone
    info = getattr(getattr(backbone, "features", None), "feature_info", None)
    tiles = getattr(model, "tiles", None)
    structure = f"{backbone!r}\n{getattr(model, 'neck', None)!r}" + (f"\n{tiles!r}" if tiles is not None else "")
    return {
        "backbone": str(getattr(backbone, "name", type(backbone).__name__)),
        "weights": digest_weights(backbone),
        # The tree of modules has what the weights do not show, such as the padding.
        "structure": hashlib.sha256(structure.encode()).hexdigest(),
        "layers": None if info is None else [str(name) for name in info.module_name()],
        "strides": [int(stride) for stride in getattr(backbone, "strides", [])],
        "image_size": [int(size) for size in getattr(model, "image_size", ())],
        "grid_size": [int(size) for size in getattr(model, "grid_size", ())],
    }


def digest_weights(module: nn.Module) -> str:
    """Return the digest of all parameters and buffers, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)  # one dimension: numpy has no bfloat16, bytes do
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _parts(container: Any) -> list[Any]:
    return list(container.transforms if isinstance(container, v2.Compose) else container)


def _plain(value: Any) -> Any:
    """Give equal arguments equal descriptions: checkpoints bring back tuples as lists, and strings as enums."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {repr(name): _plain(item) for name, item in value.items()}
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
