# SPDX-License-Identifier: Apache-2.0
"""``anomalib-uniad parity``. Heavy packages are imported when it runs."""

import sys
from pathlib import Path


def parity(
    ckpt: Path,
    models: list[Path],
    data: Path | None = None,
    data_class: str = "MultiCategory",
    output: Path = Path("parity"),
    export: bool = False,
    timed_images: int = 20,
    overwrite: bool = False,
) -> None:
    """Compare exported files with the checkpoint that they are from, on the test images of a data set.

    Of each file: differences of anomaly map and score, as parts of their ranges in torch, changes of the seven metrics,
    decisions that flip, latency, throughput and size. All are computed in f32, and once more in the device's default
    precision where that is another one. Writes parity.csv and parity.md.

    Args:
        ckpt: Lightning checkpoint of UniAD.
        models: Exported files: model.xml, model.onnx or model.pt.
        data: Folder of the data set; by default in the layout of MVTec AD, one folder per category.
        data_class: Datamodule that reads it: MultiCategory, MetaFile, CIFAR10 or one of anomalib's.
        output: Folder of the results.
        export: Export the checkpoint to OpenVINO in f32, f16, INT8 weights and INT8 (post-training quantisation, on
            training images), to a temporary folder, and compare these as well.
        timed_images: Images with which latency and throughput are measured.
        overwrite: Replace results that are there.
    """
    try:
        from .run import run

        run(ckpt, models, data, data_class, output, export, timed_images, overwrite)
    except (OSError, ValueError) as error:
        sys.exit(f"parity: {error}")
    except ModuleNotFoundError as error:
        if error.name not in {"openvino", "nncf", "onnx", "onnxscript"}:
            raise
        sys.exit(f"parity: {error.name} is not installed: pip install anomalib-uniad[openvino]")
