# SPDX-License-Identifier: Apache-2.0
"""Judges images that are in memory, without torch."""

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anomalib_uniad.errors import InputError

from .compiled import Compiled, PrecisionHint, compile_file
from .decision import Decider, NoCategoryError
from .heatmap import map_to_image
from .images import ImageFile
from .inspection import Inspection, Word
from .predictor import Output, Requests
from .regions import find_regions
from .regions_of_interest import RegionError, RegionsOfInterest, on_map
from .score import score_map
from .thresholds_file import GivenThresholds


class Judge:
    """Turns the outputs of a model into inspections.

    Args:
        compiled (Compiled): The model.
        minimum_area (int): Defective regions of fewer pixels are left out of mask and regions. Defaults to ``0``.
        category (str): As of :class:`~anomalib_uniad.inference.decision.Decider`. Defaults to ``""``.
        thresholds (Path | None): ``thresholds.yaml`` by which to decide. Defaults to ``None``, as the model does.
        regions_of_interest (Path | None): ``regions.yaml``, outside of which nothing counts. Defaults to ``None``.

    Attributes:
        origin (tuple[str, str]): Hashes of the model and of the thresholds by which is decided.

    Raises:
        ValueError: If an argument is out of its range, or the model has no threshold of the category.
    """

    def __init__(
        self,
        compiled: Compiled,
        minimum_area: int = 0,
        category: str = "",
        thresholds: Path | None = None,
        regions_of_interest: Path | None = None,
    ) -> None:
        if minimum_area < 0:
            raise InputError(f"minimum_area must be at least 0 pixels, got {minimum_area}.")
        decides, has_raw = "pred_label" in compiled.outputs, "pred_score" in compiled.raw_outputs
        given = None
        if thresholds is not None:
            given = GivenThresholds.read(thresholds).put_into(compiled.metadata, thresholds)
        self.decider = Decider(compiled.metadata, decides, has_raw, category, given)
        decided_by = (given or compiled.metadata).hash_of_thresholds()
        self._geometry, self._image_score = compiled.metadata.geometry, compiled.metadata.image_score
        self._minimum_area = minimum_area
        self._interest = RegionsOfInterest()
        if regions_of_interest is not None:
            self._interest = RegionsOfInterest.read(regions_of_interest)
            normalised = self.decider.normalised or bool(compiled.metadata.products)
            has_raw_map = "anomaly_map" in (compiled.raw_outputs if normalised else compiled.outputs)
            self._interest.check(compiled.metadata, has_raw_map, regions_of_interest)
            decided_by = hashlib.sha256(decided_by.encode() + self._interest.content()).hexdigest()[:16]
        self.origin = (compiled.hash, decided_by)

    def __call__(self, output: Output, product: str | None = None, maps: bool = True) -> Inspection:
        """Judge an image.

        Args:
            output (Output): What the model says about it; with the image, if map and regions are wanted.
            product (str | None): What it shows, empty if that is not known. Defaults to ``None``: by its path, if the
                category is ``"auto"``.
            maps (bool): Whether map, mask and regions are wanted. Defaults to ``True``.

        Raises:
            RegionError: If the region of interest does not fit to the image.
        """
        product = self.decider.category_of(output.file.path) if product is None else product
        output, inside = self._look_inside(output, product)
        found = self.decider.decide(output, product)
        word: Word = "undecided" if found.anomalous is None else "anomalous" if found.anomalous else "normal"
        word = "unknown" if found.unknown else word
        scores = (found.normalised_score, found.raw_score, found.threshold)
        if output.anomaly_map is None or output.image is None or not maps:
            return Inspection(word, found.category, *scores)
        size = (output.image.shape[0], output.image.shape[1])
        shown = map_to_image(self.decider.shown_map(output, product), size, self._geometry)
        if inside is not None:
            shown[~inside] = np.nan
        threshold = None if found.unknown else self.decider.mask_threshold(found)
        if threshold is None:
            return Inspection(word, found.category, *scores, shown, region_of_interest=inside)
        mask, regions = find_regions(shown, threshold, self._minimum_area)
        return Inspection(word, found.category, *scores, shown, mask, regions, inside, threshold)

    def finish(self, output: Output) -> None:
        """Judge an image, if the model has said something about it; what cannot be judged has its error.

        Args:
            output (Output): See :meth:`__call__`.
        """
        if output.image is None or output.error:
            return
        try:
            output.inspection = self(output)
        except NoCategoryError as error:  # as the next one, of this image alone
            output.error = str(error)
        except RegionError as error:
            output.error = f"{output.file.path} cannot be judged: {error}."

    def _look_inside(self, output: Output, product: str) -> tuple[Output, NDArray[np.bool_] | None]:
        """The output with the score of the region of interest, and that region ``(H, W)``, if it has one."""
        region = self._interest.region_of(self.decider.product_of(output, product))
        if region is None and self._interest.products and not product and output.product is None:
            raise RegionError("it is not known which product it shows, by which its region of interest is chosen")
        raw_map = output.anomaly_map if output.raw_map is None else output.raw_map
        if region is None or output.image is None or raw_map is None:
            return output, None
        inside = region.of(output.image.shape[:2])
        part = on_map(inside, (raw_map.shape[0], raw_map.shape[1]), self._geometry)
        return self.decider.rescored(output, score_map(raw_map, part, **self._image_score)), inside


class Inspector:
    """An exported model, ready to judge images.

    One object serves any number of threads.

    Args:
        model (Path | str): ``model.xml`` with ``model.bin`` beside it, or an ONNX file.
        device (str): OpenVINO's name of the device. Defaults to ``"CPU"``.
        precision_hint (str): ``"f32"``, ``"bf16"`` or ``"auto"``. Defaults to ``"f32"``.
        threads (int): Threads on the CPU; 0 leaves it to OpenVINO. Defaults to ``0``.
        minimum_area (int): Defective regions of fewer pixels are left out of mask and regions. Defaults to ``0``.
        thresholds (Path | str | None): ``thresholds.yaml`` by which to decide, for example of ``anomalib-uniad
            review``. Defaults to ``None``, as the model has learned.
        regions_of_interest (Path | str | None): ``regions.yaml`` with the part of each product's images that counts.
            Defaults to ``None``, all of it.
        performance_hint (str): ``"LATENCY"`` for one image at a time, ``"THROUGHPUT"`` for several threads that judge
            at the same time. Defaults to ``"LATENCY"``.

    Attributes:
        origin (tuple[str, str]): Hashes of the model and of the thresholds by which is decided.
        value_range (tuple[float, float] | None): Pixel values that become black and white in images with more than 8
            bits; ``None`` if the model takes no such images.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it is no such model, or an argument is out of its range.

    Examples:
        >>> inspector = Inspector("model.xml")  # doctest: +SKIP
        >>> inspector.inspect(frame).decision  # doctest: +SKIP
        'normal'
    """

    def __init__(
        self,
        model: Path | str,
        device: str = "CPU",
        precision_hint: PrecisionHint = "f32",
        threads: int = 0,
        minimum_area: int = 0,
        thresholds: Path | str | None = None,
        regions_of_interest: Path | str | None = None,
        performance_hint: Literal["LATENCY", "THROUGHPUT"] = "LATENCY",
    ) -> None:
        self._compiled = compile_file(Path(model), device, precision_hint, threads, performance_hint)
        given = None if thresholds is None else Path(thresholds)
        regions = None if regions_of_interest is None else Path(regions_of_interest)
        self._judge = Judge(self._compiled, minimum_area, thresholds=given, regions_of_interest=regions)
        self._requests = Requests(self._compiled)
        self.origin = self._judge.origin
        self.value_range = self._compiled.metadata.value_range

    @property
    def products(self) -> tuple[str, ...]:
        """Products that can be given, since the model has a threshold of them."""
        thresholds = self._compiled.metadata.category_thresholds
        return tuple(name for name, levels in thresholds.items() if "image" in levels)

    def inspect(self, image: NDArray, product: str = "") -> Inspection:
        """Judge one image.

        Args:
            image (NDArray): ``(H, W, 3)``, red first, or grey ``(H, W)``; uint8, or for a model with a
                ``value_range`` uint16, or float32 from 0 to 255 that the range was already applied to.
            product (str): What it shows, if that is known. Defaults to ``""``: the model recognises it, or has one
                threshold for all.

        Returns:
            Inspection: What the model says.

        Raises:
            ValueError: If the image is something else or cannot be judged, or the model does not know the product.
        """
        return self.inspect_batch([image], [product])[0]

    def inspect_batch(self, images: Sequence[NDArray], products: Sequence[str] | None = None) -> list[Inspection]:
        """Judge several images, of any sizes.

        Args:
            images (Sequence[NDArray]): As of :meth:`inspect`.
            products (Sequence[str] | None): One for each. Defaults to ``None``, not known.

        Returns:
            list[Inspection]: One for each.

        Raises:
            ValueError: As of :meth:`inspect`; the message says which image it is.
        """
        names = [""] * len(images) if products is None else list(products)
        if len(names) != len(images):
            raise InputError(f"There are {len(images)} images, but {len(names)} products.")
        if unknown := sorted({name for name in names if name and name not in self.products}):
            known = ", ".join(self.products) or "none"
            raise InputError(f"The model has no threshold of {', '.join(unknown)}, only of: {known}.")
        outputs = [self._prepare(image, number) for number, image in enumerate(images)]
        self._requests.fill(outputs)
        for output in outputs:
            if output.error:
                raise InputError(output.error)
        return [self._judged(output, name) for output, name in zip(outputs, names, strict=True)]

    def _judged(self, output: Output, product: str) -> Inspection:
        try:
            return self._judge(output, product)
        except RegionError as error:
            raise InputError(f"{output.file.path} cannot be judged: {error}.") from error

    def _prepare(self, image: NDArray, number: int) -> Output:
        pixels, metadata = np.asarray(image), self._compiled.metadata
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        name = f"Image {number}"
        if pixels.ndim != 3 or pixels.shape[2] not in {1, 3} or not pixels.size:
            raise InputError(f"{name} must be (height, width, 3) or (height, width), got {pixels.shape}.")
        if pixels.dtype == np.uint16 and metadata.value_range is not None:
            low, high = metadata.value_range
            pixels = ((pixels.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255)
        elif pixels.dtype != np.uint8 and (pixels.dtype != np.float32 or metadata.value_range is None):
            allowed = "uint8" if metadata.value_range is None else "uint8, uint16 or float32"
            raise InputError(f"{name} must have pixels of {allowed}, got {pixels.dtype}.")
        try:
            self._compiled.check(pixels.shape[:2])
        except ValueError as error:
            raise InputError(f"{name} cannot be judged: {error}.") from error
        file = ImageFile(Path(name), PurePath(name))
        return Output(file, image=np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
