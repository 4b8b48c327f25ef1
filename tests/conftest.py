# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests: one thread, no model hub, and anomalib imported once."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Generator, Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

with warnings.catch_warnings():  # what other packages warn about while they are imported
    warnings.simplefilter("ignore")
    import anomalib.engine
    import anomalib.models  # noqa: F401
    import torch

from anomalib_uniad.metrics import PerCategoryEvaluator

# Threads that wait for each other cost more than these small models, most of all where other programs run.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def curves(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests draw no curves of categories, which take much of the time of a small run, unless they are marked."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.node.get_closest_marker("curves") is None:
            monkeypatch.setattr(PerCategoryEvaluator, "_draw_curves", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def messages_of_lightning(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """caplog listens at the root logger, to which Lightning passes messages on if that had a handler at the import.

    In other tests it does not, whatever handlers commands have left at the root.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", "caplog" in request.fixturenames)


class _SignalStack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def no_dangling_signal_stack() -> Iterator[None]:
    """OpenVINO sets a stack for signals per `Core`, and with several of them can leave one that is freed.

    The end of a child process would then crash this one, where torch has a handler for it.
    """
    yield
    if sys.platform == "linux":
        disabled = _SignalStack(None, 2, 0)  # SS_DISABLE: handlers run on the ordinary stack
        ctypes.CDLL(None).sigaltstack(ctypes.byref(disabled), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has written may have names in it that are no text, which pytest-xdist cannot send."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
