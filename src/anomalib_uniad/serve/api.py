# SPDX-License-Identifier: Apache-2.0
"""What a worker does with requests."""

import base64
import logging
import signal
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from io import BytesIO
from queue import Empty
from typing import Annotated, Any

import numpy as np
from fastapi import Depends
from litserve import LitAPI
from litserve.loops.simple_loops import BatchedLoop
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from starlette.responses import JSONResponse, Response

from anomalib_uniad.errors import InputError
from anomalib_uniad.image_files import FORMATS, reason_of, to_rgb
from anomalib_uniad.inference import Inspection, Inspector
from anomalib_uniad.inference.heatmap import draw_inspection

from .guard import Room
from .upload import Upload, read_upload

DECISION = "x-decision"  # header of answers, which is counted


class InspectAPI(LitAPI):
    """Judges the images of a batch in threads, so that what fails is one image alone.

    Args:
        options (dict[str, Any]): Arguments of :class:`~anomalib_uniad.inference.Inspector`.
        max_batch_size (int): Images at a time.
        batch_timeout (float): Seconds for which is waited for as many.
        max_pixels (int): Of an image, and of all that are judged at the same time.
    """

    def __init__(self, options: dict[str, Any], max_batch_size: int, batch_timeout: float, max_pixels: int) -> None:
        super().__init__(max_batch_size, batch_timeout, api_path="/inspect", loop=_Loop())
        self._options, self._max_pixels = options, max_pixels

    def setup(self, device: str) -> None:
        """Load the model; called in the process of the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
        self._inspector = Inspector(**self._options)  # before the limit, which is not for its masks
        warnings.filterwarnings("ignore", module="PIL")  # of damaged files, about which the answer says all
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = self._max_pixels
        self._room = Room(self._max_pixels)
        self._pool = ThreadPoolExecutor(self.max_batch_size)

    def decode_request(self, request: Annotated[Upload, Depends(read_upload)]) -> Upload:
        """Pass on what was sent; the image is decoded in a thread of its own."""
        return request

    def predict(self, uploads: Sequence[Upload]) -> list[Response]:
        """Judge images.

        Args:
            uploads (Sequence[Upload]): As they were sent.

        Returns:
            list[Response]: One for each.
        """
        return list(self._pool.map(self._answer, uploads))

    def encode_response(self, output: Response) -> Response:
        """Pass on the answer, which is already one of HTTP."""
        return output

    def _answer(self, upload: Upload) -> Response:
        try:
            with self._opened(upload.data) as image, self._room.taken(image.width * image.height):
                pixels = self._pixels_of(image)
                found = self._inspector.inspect(pixels, upload.product)
                return JSONResponse(self._content(found, pixels, upload.pictures), headers={DECISION: found.decision})
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            return _error(413, f"The image has more than {Image.MAX_IMAGE_PIXELS:,} pixels.")
        except InputError as error:
            return _error(400, str(error))
        except Exception:
            logging.getLogger(__name__).exception("An image cannot be judged.")
            return _error(500, "The server cannot judge the image, its log says why.")

    def _opened(self, data: bytes) -> Image.Image:
        try:
            return Image.open(BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise
        except UnidentifiedImageError as error:
            raise InputError(f"The image cannot be read: it is none of {', '.join(FORMATS)}.") from error
        except Exception as error:  # Pillow's readers raise all kinds on damaged files
            raise InputError(f"The image cannot be read: {reason_of(error, '')}.") from error

    def _pixels_of(self, image: Image.Image) -> NDArray:
        try:
            return to_rgb(image, self._inspector.value_range)
        except Exception as error:  # Pillow's decoders as well
            raise InputError(f"The image cannot be read: {reason_of(error, '')}.") from error

    def _content(self, found: Inspection, pixels: NDArray, pictures: str) -> dict[str, Any]:
        model, thresholds = self._inspector.origin
        content: dict[str, Any] = {
            "decision": found.decision,
            "product": found.product,
            "score": found.score,
            "raw_score": found.raw_score,
            "threshold": found.threshold,
            "regions": [_region(asdict(region)) for region in found.regions],
            "model": model,
            "thresholds": thresholds,
        }
        if pictures == "png":
            shown, mask = found.anomaly_map, found.mask
            content["map"] = None if shown is None else _png(Image.fromarray(_grey(np.nan_to_num(shown))))
            content["mask"] = None if mask is None else _png(Image.fromarray(_grey(mask)))
        elif pictures == "drawn":
            content["drawn"] = _png(draw_inspection(pixels, found))
        return content


class _Loop(BatchedLoop):
    """LitServe's, but asleep while there is nothing to do."""

    def get_batch_requests(self, lit_api: LitAPI, request_queue: Any, transport: Any) -> tuple[list, list]:
        try:
            first = request_queue.get(timeout=1.0)
        except Empty:
            return [], []
        batch: tuple[list, list] = super().get_batch_requests(lit_api, _Queue(first, request_queue), transport)
        return batch


class _Queue:
    """A queue from which the first item was already taken."""

    def __init__(self, first: Any, queue: Any) -> None:
        self._first, self._queue = [first], queue

    def get(self, timeout: float) -> Any:
        return self._first.pop() if self._first else self._queue.get(timeout=timeout)

    def get_nowait(self) -> Any:
        return self._first.pop() if self._first else self._queue.get_nowait()


def _region(values: dict[str, Any]) -> dict[str, Any]:
    return {"box": [values.pop(name) for name in ("left", "top", "width", "height")], **values}


def _grey(values: NDArray) -> NDArray[np.uint8]:
    return (values * 255.0).round().clip(0, 255).astype(np.uint8)


def _png(image: Image.Image) -> str:
    data = BytesIO()
    image.save(data, "PNG", compress_level=1)
    return base64.b64encode(data.getvalue()).decode("ascii")


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"detail": sentence}, status)
