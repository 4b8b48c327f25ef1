# SPDX-License-Identifier: Apache-2.0
"""What the choices behind INT8 do: a trained model quantised as exported, without each of them, and as anomalib does.

    python benchmarks/quantization.py model.ckpt --data mydata
    python benchmarks/quantization.py model.ckpt --data mydata --only '[as exported]'

Compared with torch on the test images, in f32 where a part is not in INT8.
"""

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from anomalib.data import AnomalibDataModule, ImageBatch
from anomalib.deploy import CompressionType
from anomalib.models.components import AnomalibModule
from jsonargparse import auto_cli
from rich.progress import track

from anomalib_uniad import UniAD
from anomalib_uniad.category import categories_of
from anomalib_uniad.deploy.quantization import CHOICES, check_quantization, quantize
from anomalib_uniad.parity.differences import Quality, difference, difference_columns
from anomalib_uniad.parity.inputs import check, load, make_datamodule, normalises
from anomalib_uniad.parity.models import ExportedModel, ImageResult, TorchModel, pixels_of
from harness import RESULTS, add_rows, origin, processor, show

Quantise = Callable[[ov.Model, AnomalibDataModule, tuple[int, int]], ov.Model]
ALL, ANOMALIB = "as exported", "anomalib's own options"
METRICS = ("image_AUROC", "image_TPR@FPR", "pixel_AUROC", "pixel_AUPRO")


def quantization(
    ckpt: Path, data: Path | None = None, only: Sequence[str] | None = None, output_dir: Path = RESULTS
) -> None:
    """Quantise a checkpoint in all variants and compare each with torch; a row of ``quantization.csv`` for each.

    Args:
        ckpt: Lightning checkpoint of UniAD that has learned its thresholds.
        data: Folder of the images in the layout of MVTec AD.
        only: Names of the variants; default: all.
        output_dir: Folder of the csv file.
    """
    functions = variants()
    if unknown := set(only or ()) - functions.keys():
        raise ValueError(f"There is no variant {', '.join(sorted(unknown))}; there are {', '.join(functions)}.")
    check([], data, output_dir, export=True, timed_images=1, overwrite=True)
    model, datamodule = load(ckpt), make_datamodule("MultiCategory", data)
    check_quantization(CompressionType.INT8_PTQ, model.post_processor, datamodule)
    cpuinfo = Path("/proc/cpuinfo")
    # With VNNI, the processor multiplies bytes without an overflow in between.
    vnni = cpuinfo.is_file() and "vnni" in cpuinfo.read_text(encoding="utf-8")
    about = {"backbone": model.hparams["backbone"]}
    about |= origin(f"{processor()}, {'with' if vnni else 'without'} VNNI", model.seed)
    comparison = Comparison(model, ckpt, datamodule)
    with tempfile.TemporaryDirectory() as folder:
        exported = model.to_openvino(folder, "f32")
        for variant, function in track([(name, functions[name]) for name in only or functions], "Quantising"):
            row = {"variant": variant, **comparison.row(exported, function), **about}
            add_rows(output_dir / "quantization.csv", [row], ("device", "backbone", "variant"))
    show(output_dir / "quantization.csv", ("variant", "map_difference_mean", "image_AUROC_change", "size_bytes"))


def variants() -> dict[str, Quantise]:
    """How to quantise, by name."""
    return {
        ALL: quantize,
        **{f"without {choice}": partial(quantize, without=(choice,)) for choice in CHOICES},
        "without all of these": partial(quantize, without=CHOICES),
        ANOMALIB: as_anomalib,
    }


def as_anomalib(model: ov.Model, datamodule: AnomalibDataModule, size: tuple[int, int]) -> ov.Model:
    """What anomalib does with a model that says nothing else: NNCF's defaults, on validation images in batches."""
    del size  # anomalib leaves images as they are
    batches = copy.copy(datamodule)
    batches.eval_batch_size = 32  # anomalib's default
    return AnomalibModule._post_training_quantization_ov(model, batches)


class Comparison:
    """Torch's results for the test images, with which quantised models are compared."""

    def __init__(self, model: UniAD, ckpt: Path, datamodule: AnomalibDataModule) -> None:
        self._model, self._datamodule = model, datamodule
        self._expected = Counter(categories_of(list(datamodule.test_data.samples["image_path"]), datamodule))
        self._results: list[ImageResult] = []
        self._reference = Quality(datamodule, self._expected)
        torch_model = TorchModel(model, ckpt)
        for image, batch in self._images():
            result = torch_model.predict(image)
            self._reference.update(batch, result.scores["raw"], result.maps["raw"])
            raw = ImageResult({"raw": result.scores["raw"]}, {"raw": result.maps["raw"]}, result.anomalous)
            self._results.append(raw)

    def row(self, exported: Path, function: Quantise) -> dict[str, Any]:
        """Quantise an exported file in float32, and compare; ``seconds`` is processor time to quantise."""
        start = time.process_time()
        quantised = function(ov.Core().read_model(exported), self._datamodule, self._model.model.image_size)
        seconds = time.process_time() - start
        quality, differences = Quality(self._datamodule, self._expected), []
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.xml"
            ov.save_model(quantised, file, compress_to_fp16=False)
            model = ExportedModel(file, normalises(self._model))
            for (image, batch), expected in zip(self._images(), self._results, strict=True):
                result = model.predict(image)
                differences.append(difference(result, expected, "raw"))
                quality.update(batch, result.scores["raw"], result.maps["raw"])
        return {
            **difference_columns(differences, self._reference),
            **{name: value for name, value in quality.changes(self._reference).items() if name.startswith(METRICS)},
            "size_bytes": model.size_bytes,
            "quantised": sum(op.get_type_name() == "FakeQuantize" for op in quantised.get_ops()),
            "seconds": round(seconds, 1),
            "images": len(self._results),
            "categories": len(self._expected),
        }

    def _images(self) -> Iterator[tuple[np.ndarray, ImageBatch]]:
        """Test images one by one, with masks of the map's size."""
        for batch in self._datamodule.test_dataloader():
            if batch.gt_mask is not None:
                _, batch.gt_mask = self._model.pre_processor.transform(batch.image, batch.gt_mask)
            yield pixels_of(batch, rounded=True), batch


if __name__ == "__main__":
    auto_cli(quantization)
