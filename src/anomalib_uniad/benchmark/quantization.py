# SPDX-License-Identifier: Apache-2.0
"""What the choices behind INT8 do: a trained model quantised as exported, without each of them, and as anomalib does.

    python -m anomalib_uniad.benchmark.quantization model.ckpt --data mydata

Compared with torch on the test images, in f32 where a part is not in INT8.
"""

import copy
import logging
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pandas as pd
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.deploy import CompressionType
from anomalib.models.components import AnomalibModule
from jsonargparse import auto_cli
from rich.progress import track

from anomalib_uniad.benchmark.runner import add_rows
from anomalib_uniad.category import categories_of
from anomalib_uniad.deploy.quantization import CHOICES, check_quantization, quantize
from anomalib_uniad.metrics.run_files import versions
from anomalib_uniad.model import UniAD
from anomalib_uniad.parity.differences import Quality, difference, difference_columns
from anomalib_uniad.parity.inputs import check, load, make_datamodule, normalises
from anomalib_uniad.parity.models import ExportedModel, ImageResult, TorchModel, pixels_of, processor

logger = logging.getLogger(__name__)

Quantise = Callable[[ov.Model, AnomalibDataModule, tuple[int, int]], ov.Model]
ALL, ANOMALIB = "as exported", "anomalib's own options"
METRICS = ("image_AUROC", "pixel_AUROC", "pixel_AUPRO")


def quantization(
    ckpt: Path, data: Path | None = None, output_dir: Path = Path("results"), overwrite: bool = False
) -> None:
    """Quantise a checkpoint in all variants and compare each with torch; adds a row to ``quantization.csv`` for each.

    Variants that the file has already for the same checkpoint and images are left out.

    Args:
        ckpt: Lightning checkpoint of UniAD that has learned its thresholds.
        data: Folder of the images in the layout of MVTec AD.
        output_dir: Folder of the csv file.
        overwrite: Do all variants again.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check([], data, output_dir, export=True, timed_images=1, overwrite=True)
    name = "anomalib_uniad.benchmark.quantization"
    command = shlex.join(["python", "-m", name, str(ckpt), "--data", str(data)])
    file = output_dir / "quantization.csv"
    done = set() if overwrite else _done(file, command)
    waiting = {variant: function for variant, function in variants().items() if variant not in done}
    if not waiting:
        logger.info("All variants are in %s already; --overwrite true does them again.", file)
        return
    model, datamodule = load(ckpt), make_datamodule("MultiCategory", data)
    check_quantization(CompressionType.INT8_PTQ, model.post_processor, datamodule)
    comparison = Comparison(model, ckpt, datamodule)
    with tempfile.TemporaryDirectory() as folder:
        exported = model.to_openvino(folder, "f32")
        for number, (variant, function) in enumerate(waiting.items(), 1):
            logger.info("%d of %d: %s", number, len(waiting), variant)
            row = {"variant": variant, **comparison.row(exported, function)}
            device = f"{processor()}, {'with' if _has_vnni() else 'without'} VNNI"
            frame = pd.DataFrame([row]).assign(seed=model.seed, device=device, versions=versions(), command=command)
            add_rows(file, frame, ("variant",))


def variants() -> dict[str, Quantise]:
    """How to quantise, by name."""
    left_out: dict[str, Quantise] = {f"without {choice}": partial(quantize, without=(choice,)) for choice in CHOICES}
    left_out["without all of these"] = partial(quantize, without=CHOICES)
    return {ALL: quantize, **left_out, ANOMALIB: _as_anomalib}


class Comparison:
    """The test images and what torch says about them, to which quantised models are compared.

    Args:
        model (UniAD): The model.
        ckpt (Path): Where it is from.
        datamodule (AnomalibDataModule): Where the test images are from, one by one.
    """

    def __init__(self, model: UniAD, ckpt: Path, datamodule: AnomalibDataModule) -> None:
        self._model, self._datamodule = model, datamodule
        categories = categories_of(list(datamodule.test_data.samples["image_path"]), datamodule)
        self._images, self._expected = len(categories), Counter(categories)
        self._said: list[ImageResult] = []
        self._reference = Quality(datamodule, self._expected)
        torch_model = TorchModel(model, ckpt)
        for image, batch in self._batches("Torch"):
            said = torch_model.predict(image)
            self._reference.update(batch, said.scores["raw"], said.maps["raw"])
            self._said.append(ImageResult({"raw": said.scores["raw"]}, {"raw": said.maps["raw"]}, said.anomalous))

    def row(self, exported: Path, function: Quantise) -> dict[str, Any]:
        """Quantise and compare.

        Args:
            exported (Path): The exported file in float32.
            function (Quantise): How to quantise.

        Returns:
            dict[str, Any]: Differences, metrics and their changes, size, ``quantised``, the number of quantised
            tensors, and ``seconds`` of processor time to quantise.
        """
        height, width = self._model.model.image_size
        start = time.process_time()
        quantised = function(ov.Core().read_model(exported), self._datamodule, (height, width))
        seconds = time.process_time() - start
        quality, differences = Quality(self._datamodule, self._expected), []
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.xml"
            ov.save_model(quantised, file, compress_to_fp16=False)
            predictor = ExportedModel(file, normalises(self._model))
            for (image, batch), said in zip(self._batches("INT8"), self._said, strict=True):
                own = predictor.predict(image)
                differences.append(difference(own, said, "raw"))
                quality.update(batch, own.scores["raw"], own.maps["raw"])
        return {
            **difference_columns(differences, self._reference),
            **{name: change for name, change in quality.changes(self._reference).items() if name.startswith(METRICS)},
            "size_bytes": predictor.size_bytes,
            "quantised": sum(op.get_type_name() == "FakeQuantize" for op in quantised.get_ops()),
            "seconds": round(seconds, 1),
            "images": self._images,
            "categories": len(self._expected),
        }

    def _batches(self, what: str) -> Iterator[tuple[np.ndarray, ImageBatch]]:
        """Test images one by one, with masks of the map's size."""
        batch: Any
        for batch in track(self._datamodule.test_dataloader(), what, total=self._images, transient=True):
            if batch.gt_mask is not None:
                pre_processor: Any = self._model.pre_processor
                _, batch.gt_mask = pre_processor.transform(batch.image, batch.gt_mask)
            yield pixels_of(batch), batch


def _as_anomalib(model: ov.Model, datamodule: AnomalibDataModule, size: tuple[int, int]) -> ov.Model:
    """What anomalib does with a model that says nothing else: NNCF's defaults, on validation images in batches."""
    del size  # anomalib leaves images as they are
    batches = copy.copy(datamodule)
    batches.eval_batch_size = 32  # anomalib's default
    quantised: ov.Model = AnomalibModule._post_training_quantization_ov(model, batches)
    return quantised


def _done(file: Path, command: str) -> set[str]:
    if not file.is_file():
        return set()
    rows = pd.read_csv(file)
    return set(rows.loc[rows["command"] == command, "variant"])


def _has_vnni() -> bool:
    """Whether the processor multiplies bytes without an overflow in between."""
    info = Path("/proc/cpuinfo")
    return "vnni" in info.read_text(encoding="utf-8") if info.is_file() else False


if __name__ == "__main__":
    auto_cli(quantization)
