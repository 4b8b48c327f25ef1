# SPDX-License-Identifier: Apache-2.0
"""The model hub with timm's pretrained weights: whether it can be reached, and what is kept of it on this machine."""

import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants, try_to_load_from_cache

_FILES = ("model.safetensors", "pytorch_model.bin")


def is_on_hub(name: str) -> bool:
    """Whether timm fetches the weights of a model from the hub.

    Args:
        name (str): The model's name in timm.

    Returns:
        bool: ``False`` also for models whose weights are a file.
    """
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return bool(config and config.hf_hub_id and not config.file)


def is_reachable(seconds: float = 3.0) -> bool:
    """Whether the hub can be reached; its own client tries for most of a minute.

    Args:
        seconds (float): How long to wait for an answer. Defaults to ``3.0``.

    Returns:
        bool: ``True`` also if there is a proxy, which has to be asked to know; ``False`` with ``HF_HUB_OFFLINE=1``.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    url, proxies = urlsplit(constants.ENDPOINT), getproxies()
    if url.hostname is None or url.scheme in proxies or "all" in proxies:
        return True
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), seconds).close()
    except OSError:
        return False
    return True


def cached_weights(name: str) -> Path | None:
    """Weights of a model that were fetched earlier.

    Args:
        name (str): The model's name in timm.

    Returns:
        Path | None: The file in the hub's cache, if there is one.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or config.hf_hub_id is None:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    for filename in (config.hf_hub_filename, *_FILES):
        if filename:
            found = try_to_load_from_cache(repository, filename, revision=revision or None)
            if isinstance(found, str):
                return Path(found)
    return None
