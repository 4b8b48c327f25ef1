# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad serve``. LitServe and OpenVINO are imported when it runs."""

import errno
import logging
import os
import socket
from pathlib import Path
from typing import Any, Literal

from anomalib_uniad.checks import check_at_least
from anomalib_uniad.errors import InputError, MissingPackageError


def serve(
    model: Path,
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    max_batch_size: int = 8,
    batch_timeout: float = 0.005,
    max_megabytes: float = 32,
    max_megapixels: float = 89.478485,
    max_requests: int = 64,
    max_seconds: float = 60,
    thresholds: Path | None = None,
    minimum_area: int = 0,
    regions_of_interest: Path | None = None,
    device: str = "CPU",
    precision_hint: Literal["f32", "bf16", "auto"] = "f32",
    threads: int = 0,
) -> None:
    """Serve an exported model: POST /inspect takes an image and returns what the model says about it.

    GET /ui is a page to try it, GET /health tells whether it is ready, GET /metrics has numbers for Prometheus. Ctrl-C
    and SIGTERM end it. Needs neither torch nor anomalib.

    Args:
        model: model.xml (with model.bin beside it) or model.onnx, as `anomalib export` writes them.
        host: Address to listen at; "0.0.0.0" and "::" are all of the machine.
        port: Port to listen at, from 1024 to 65535.
        workers: Processes that judge, each with the model in memory.
        max_batch_size: Images that a worker judges at the same time; 1 judges each with all threads.
        batch_timeout: Seconds for which a worker waits for as many.
        max_megabytes: Larger requests are refused.
        max_megapixels: Larger images are refused, as Pillow does by default; a worker judges as many pixels at the
            same time, each of which takes about 40 bytes.
        max_requests: Requests at the same time; more are refused, for as many bodies are held in memory.
        max_seconds: Requests that take longer are given up, connections that send nothing for as long are closed.
        thresholds: thresholds.yaml by which to decide, for example of `anomalib-uniad review`. Default: as the model
            has learned.
        minimum_area: Defective regions of fewer pixels are left out of masks and regions.
        regions_of_interest: regions.yaml with the part of each product's images that counts. Default: all of it.
        device: OpenVINO's name of the device, for example CPU, GPU or AUTO.
        precision_hint: Precision of the computation. "f32" gives the numbers of torch; "bf16" is faster on processors
            that have it and shifts scores slightly; "auto" is OpenVINO's choice.
        threads: Threads of each worker on the CPU; 0 divides all cores among the workers.
    """
    check_at_least("workers", workers, 1)
    check_at_least("max_batch_size", max_batch_size, 1)
    check_at_least("batch_timeout", batch_timeout, 0)
    check_at_least("max_megabytes", max_megabytes, 0.001)
    check_at_least("max_megapixels", max_megapixels, 0.001)
    check_at_least("max_requests", max_requests, 1)
    check_at_least("max_seconds", max_seconds, 1)
    try:
        import litserve  # noqa: F401
        import openvino  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{error.name} is not installed: pip install 'anomalib-uniad[serve]'") from error
    _check_port(host, port)
    from anomalib_uniad.inference import Inspector

    from .server import Server

    if threads == 0 and workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
    options: dict[str, Any] = {
        "model": model,
        "device": device,
        "precision_hint": precision_hint,
        "threads": threads,
        "minimum_area": minimum_area,
        "thresholds": thresholds,
        "regions_of_interest": regions_of_interest,
        "performance_hint": "THROUGHPUT" if max_batch_size > 1 else "LATENCY",
    }
    inspector = Inspector(**options)  # mistakes are found here, not in the workers
    limits = int(max_megabytes * 1e6), round(max_megapixels * 1e6), max_requests, max_seconds
    server = Server(inspector, options, workers, max_batch_size, batch_timeout, *limits)
    del inspector
    # Of warnings, a stranger could write any number into the log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    server.run(host, port, num_api_servers=1, log_level="error", generate_client_file=False)


def _check_port(host: str, port: int) -> None:
    if not 1024 <= port <= 65535:
        raise InputError(f"port must lie in [1024, 65535], got {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
            raise InputError(f"Port {port} of {host} {reason}: choose another one with --port.") from error
