# SPDX-License-Identifier: Apache-2.0
"""Runs a model on many images: in parallel, in order, with bounded memory."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import openvino as ov

from anomalib_uniad.image_files import read_image

from .compiled import Compiled
from .images import ImageFile, resize_image
from .inspection import Inspection, Picture


@dataclass
class Output:
    """Raw model output for one image.

    Args:
        file (ImageFile): The image.
        score (float | None): Its score, normalised to [0, 1] if the model does that, else raw.
        raw_score (float | None): Its raw score, if the model normalises or calibrates and the file has the raw one too.
        product (int | None): Number of the product that it looks most like, if the model recognises products.
        unknown (bool): Whether it is of none of those.
        label (bool | None): Whether the model itself calls it anomalous, if it decides.
        anomaly_map (np.ndarray | None): ``(H, W)``, of the model's size.
        raw_map (np.ndarray | None): The raw map, if the model normalises and the file has the raw one too; only while
            ``finish`` runs.
        image (np.ndarray | None): ``(H, W, 3)``, of its own size: uint8, or float32 from 0 to 255 if the file has more
            than 8 bits; only while ``finish`` runs.
        inspection (Inspection | None): For ``finish``, to keep what was made of it.
        pictures (list[Picture]): For ``finish``, as ``inspection``.
        error (str): Why there is no result, with the name of the file; empty if there is one.
    """

    file: ImageFile
    score: float | None = None
    raw_score: float | None = None
    product: int | None = None
    unknown: bool = False
    label: bool | None = None
    anomaly_map: np.ndarray | None = field(default=None, repr=False)
    raw_map: np.ndarray | None = field(default=None, repr=False)
    image: np.ndarray | None = field(default=None, repr=False)
    inspection: Inspection | None = None
    pictures: list[Picture] = field(default_factory=list, repr=False)
    error: str = ""


class Requests:
    """Runs images through a compiled model; safe to call from several threads.

    Args:
        compiled (Compiled): The model.

    Attributes:
        count (int): How many run at a time; OpenVINO recommends it for the device.
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self.count: int = compiled.model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(self.count):
            request = compiled.model.create_infer_request()
            # Run it once in this thread: OpenVINO sets up its conversion to numpy at the first use, and two threads
            # that do so at the same time may deadlock.
            geometry = compiled.metadata.geometry
            height, width = compiled.size or (geometry.least if geometry and geometry.crop else (32, 32))
            self._request(request, np.zeros((compiled.batch_size, height, width, 3)))
            self._idle.put(request)

    def fill(self, outputs: Sequence[Output]) -> None:
        """Run the images of outputs, of any sizes, and fill in what the model says, or an error."""
        size = self._compiled.size
        same: dict[tuple[int, ...], list[tuple[Output, np.ndarray]]] = {}
        for output in outputs:
            if output.image is not None:
                image = resize_image(output.image, size) if size else output.image
                same.setdefault(image.shape, []).append((output, image))
        step = self._compiled.batch_size
        for pairs in same.values():
            for start in range(0, len(pairs), step):
                self._infer(*zip(*pairs[start : start + step], strict=True))

    def _infer(self, outputs: Sequence[Output], images: Sequence[np.ndarray]) -> None:
        """Run images of one size; a batch that is not full is filled up with the last of them."""
        compiled = self._compiled
        images = [*images, *[images[-1]] * (compiled.batch_size - len(images))]
        request = self._idle.get()
        try:
            results = self._request(request, np.stack(images))
        except RuntimeError as error:
            for output in outputs:
                reason = " ".join(str(error).split()).rstrip(".")
                output.error = f"{output.file.path} cannot be predicted by OpenVINO: {reason}."
            return
        finally:
            self._idle.put(request)
        named = {name: results[index] for name, index in compiled.outputs.items()}
        raw = {name: results[index] for name, index in compiled.raw_outputs.items()}
        for index, output in enumerate(outputs):
            output.score = float(named["pred_score"].reshape(-1)[index])
            if "pred_score" in raw:
                output.raw_score = float(raw["pred_score"].reshape(-1)[index])
            if "product" in named:
                output.product = int(named["product"].reshape(-1)[index])
                output.unknown = bool(named["unknown_product"].reshape(-1)[index])
            if not all(math.isfinite(score) for score in (output.score, output.raw_score or 0.0)):
                output.score = output.raw_score = None
                output.error = f"{output.file.path} has a score that is not a number: the model is damaged."
                continue
            # OpenVINO's maximum of a map may pass over NaN.
            if not all(np.isfinite(maps["anomaly_map"][index]).all() for maps in (named, raw) if "anomaly_map" in maps):
                output.score = output.raw_score = None
                output.error = (
                    f"{output.file.path} has an anomaly map with values that are not numbers: the model is damaged."
                )
                continue
            if "pred_label" in named:
                output.label = bool(named["pred_label"].reshape(-1)[index])
            if "anomaly_map" in named:
                output.anomaly_map = named["anomaly_map"][index].reshape(named["anomaly_map"].shape[-2:])
            if "anomaly_map" in raw:
                output.raw_map = raw["anomaly_map"][index].reshape(raw["anomaly_map"].shape[-2:])

    def _request(self, request: ov.InferRequest, images: np.ndarray) -> list[np.ndarray]:
        """Images ``(B, H, W, 3)`` -> all outputs."""
        request.start_async({0: images.astype(self._compiled.dtype, copy=False)})
        request.wait()
        return [request.get_output_tensor(index).data.copy() for index in range(len(self._compiled.model.outputs))]


class Predictor:
    """Reads images, runs the model and finishes each image in a pool of threads.

    There are as many requests as OpenVINO recommends for the device, and twice as many threads, so that half of them
    read ahead while the others infer. Requests are started and awaited one by one, because OpenVINO's
    ``AsyncInferQueue`` does not tell which image an error belongs to. At most about four images per request are in
    memory.

    Args:
        compiled (Compiled): The model.

    Attributes:
        requests (Requests): What runs at a time.

    Examples:
        >>> from pathlib import Path
        >>> from anomalib_uniad.inference.compiled import compile_file
        >>> from anomalib_uniad.inference.images import find_images
        >>> predictor = Predictor(compile_file(Path("model.xml")))  # doctest: +SKIP
        >>> for output in predictor.predict(find_images([Path("images")])):  # doctest: +SKIP
        ...     print(output.file.path, output.score, output.error)
    """

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self.requests = Requests(compiled)

    def predict(self, files: Sequence[ImageFile], finish: Callable[[Output], None] | None = None) -> Iterator[Output]:
        """Predict images.

        Args:
            files (Sequence[ImageFile]): The images.
            finish (Callable[[Output], None] | None): Called with each output in the thread that has the image. An
                exception in it ends the prediction. Defaults to ``None``.

        Yields:
            Output: One per image, in the order of ``files``; images that cannot be read or predicted have an error.
        """
        size = self._compiled.batch_size
        chunks = (files[start : start + size] for start in range(0, len(files), size))
        count = self.requests.count
        pool = ThreadPoolExecutor(2 * count, thread_name_prefix="predict")
        pending: deque[Future[list[Output]]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(self._work, chunk, finish))
                if len(pending) >= 4 * count:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _work(self, chunk: Sequence[ImageFile], finish: Callable[[Output], None] | None) -> list[Output]:
        outputs = [_read(file, self._compiled) for file in chunk]
        self.requests.fill(outputs)
        for output in outputs:
            if finish is not None:
                finish(output)
            output.image = output.raw_map = None
        return outputs


def _read(file: ImageFile, compiled: Compiled) -> Output:
    try:
        image = read_image(file.path, compiled.metadata.value_range)
    except ValueError as error:
        return Output(file, error=str(error))
    try:
        compiled.check(image.shape[:2])
    except ValueError as error:
        return Output(file, error=f"{file.path} cannot be predicted: {error}.")
    return Output(file, image=image)
