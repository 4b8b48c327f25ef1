# SPDX-License-Identifier: Apache-2.0
"""A disk on which files cannot grow."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let writing fail, as on a full disk, beyond a size of a file in bytes; the system calls it "File too large"."""
    resource = pytest.importorskip("resource", reason="the system has no limit of the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
