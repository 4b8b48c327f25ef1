# SPDX-License-Identifier: Apache-2.0
"""Memory that is freed is used again."""

import platform

import pytest
import torch

from anomalib_uniad.allocator import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of another C library")
def test_freed_memory_is_not_cleared_again() -> None:
    import resource

    keep_freed_memory()
    torch.ones(2**24)  # 64 MB, 16,384 pages
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
