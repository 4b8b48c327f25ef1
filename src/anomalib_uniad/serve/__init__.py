# SPDX-License-Identifier: Apache-2.0
"""An exported model as a server, on LitServe; no torch."""

from .command import serve

__all__ = ["serve"]
