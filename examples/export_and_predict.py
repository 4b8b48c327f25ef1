# SPDX-License-Identifier: Apache-2.0
"""Export a checkpoint to OpenVINO, and predict a folder of images with the file; the second step needs no torch.

python examples/export_and_predict.py model.ckpt new_images
"""

import csv
import sys
from pathlib import Path

from anomalib_uniad.inference import predict


def export(checkpoint: str, folder: str = "exported") -> Path:
    """Write `model.xml` and `model.bin`."""
    from anomalib_uniad import UniAD  # needs torch and anomalib

    return UniAD.load_from_checkpoint(checkpoint).to_openvino(folder)


def main(checkpoint: str, images: str, output: str = "predictions") -> list[dict[str, str]]:
    """Export and predict; return the rows of `predictions.csv`.

    Args:
        checkpoint: A checkpoint of UniAD.
        images: Folder of images, in sub-folders with the names of the products.
        output: Folder for the table and the heatmaps.
    """
    model = export(checkpoint)
    predict(model, [Path(images)], output=Path(output), category="auto", overwrite=True)
    with Path(output, "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    print(f"{sum(row['decision'] == 'anomalous' for row in rows)} of {len(rows)} images are anomalous.")
    return rows


if __name__ == "__main__":
    main(*sys.argv[1:])
