# SPDX-License-Identifier: Apache-2.0
"""The server: LitServe with the routes that it does not have."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from litserve import LitAPI, LitServer
from starlette.responses import FileResponse

import anomalib_uniad
from anomalib_uniad.inference import Inspector

from .api import DECISION, InspectAPI
from .guard import AtMost, protocol
from .metrics import Measure, Metrics
from .upload import Limits

_PAGE = Path(__file__).parent / "page.html"
_STYLE = Path(anomalib_uniad.__file__).parent / "report" / "style.css"


class Server(LitServer):
    """A server of one model.

    Args:
        inspector (Inspector): The model, to ask what it is.
        options (dict[str, Any]): Arguments with which each worker loads it.
        workers (int): Processes that judge.
        max_batch_size (int): Images that a worker judges at a time.
        batch_timeout (float): Seconds for which it waits for as many.
        max_size (int): Bytes of a request.
        max_pixels (int): Pixels of an image, and of all that a worker judges at the same time.
        max_requests (int): Requests at the same time; others are refused.
        max_seconds (float): Seconds that a request may take, and for which a connection may send nothing.
    """

    def __init__(
        self,
        inspector: Inspector,
        options: dict[str, Any],
        workers: int,
        max_batch_size: int,
        batch_timeout: float,
        max_size: int,
        max_pixels: int,
        max_requests: int,
        max_seconds: float,
    ) -> None:
        model, thresholds = inspector.origin
        about = {"file": Path(options["model"]).name, "model": model, "thresholds": thresholds}
        super().__init__(
            InspectAPI(options, max_batch_size, batch_timeout, max_pixels),
            accelerator="cpu",  # where the model runs is OpenVINO's
            workers_per_device=workers,
            timeout=max_seconds / 2,
            model_metadata={**about, "products": list(inspector.products)},
            restart_workers=True,
            disable_openapi_url=True,  # whose page would load scripts from elsewhere
        )
        self.app.state.limits = Limits(max_size, inspector.products)
        self._protocol = protocol(max_seconds)
        metrics = Metrics()
        self.app.add_middleware(AtMost, path="/inspect", requests=max_requests)
        self.app.add_middleware(Measure, metrics=metrics, path="/inspect", header=DECISION, limit=max_seconds)
        self.app.add_api_route("/metrics", metrics.show, response_model=None)
        self.app.add_api_route("/ui", lambda: FileResponse(_PAGE), response_model=None)
        self.app.add_api_route("/ui/style.css", lambda: FileResponse(_STYLE), response_model=None)

    def run(self, host: str, port: int, **arguments: Any) -> None:
        """Serve until Ctrl-C or SIGTERM."""
        self._address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._process, self._ends = os.getpid(), False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._interrupt)
        try:
            super().run(host, port, http=self._protocol, ws="none", **arguments)
        except KeyboardInterrupt:  # before LitServe waits for it, or once more
            for process in multiprocessing.active_children():
                process.terminate()

    def launch_single_inference_worker(self, lit_api: LitAPI, worker_id: int) -> Any:
        """Start a worker again that has died, unless it was ended."""
        if self._ends:
            return self.inference_workers[worker_id]
        return super().launch_single_inference_worker(lit_api, worker_id)

    def _interrupt(self, *_: Any) -> None:
        if os.getpid() == self._process:  # not in the process of the routes, which is forked and ends by itself
            self._ends = True
            raise KeyboardInterrupt

    def verify_worker_status(self) -> None:
        """Wait for the first worker, and say that it is ready."""
        super().verify_worker_status()
        from rich.console import Console

        line = f"Serving {self.model_metadata['file']} at {self._address}: POST /inspect, GET /ui, /health, /metrics."
        Console(highlight=False).print(f"{line} Ctrl-C ends it.", soft_wrap=True, markup=False)
