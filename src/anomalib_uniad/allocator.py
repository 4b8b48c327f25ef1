# SPDX-License-Identifier: Apache-2.0
"""What C's allocator does with memory that is freed."""

import ctypes
import sys

# Numbers of mallopt's parameters, https://man7.org/linux/man-pages/man3/mallopt.3.html.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 2**30  # bytes: what a batch of a large backbone takes


def keep_freed_memory() -> None:
    """Have up to 1 GB of freed memory used again, instead of given back to the system.

    By default, glibc maps each tensor of more than 32 MB anew and unmaps it when it is freed. The system clears every
    page of it, which on a CPU takes as long as the layer of a small backbone that fills them. Without glibc, nothing
    happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library may have none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, _KEPT)
