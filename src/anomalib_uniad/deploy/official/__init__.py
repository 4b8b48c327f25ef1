# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' code (``ckpt.pth.tar`` of https://github.com/zhiyuanyou/UniAD)."""

from .checkpoint import OfficialCheckpoint, load_official

__all__ = ["OfficialCheckpoint", "load_official"]
