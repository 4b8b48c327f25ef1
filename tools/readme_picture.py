# SPDX-License-Identifier: Apache-2.0
"""The picture of README.md: a defective test image of each product of the quickstart, and its heatmap below.

After the quickstart, in the root of a clone:

    anomalib export --config configs/quickstart.yaml --export_type openvino \
        --ckpt_path results/UniAD/SyntheticProducts/latest/weights/lightning/model.ckpt
    anomalib-uniad predict results/weights/openvino/model.xml datasets/SyntheticProducts/*/test --category auto
    python tools/readme_picture.py datasets/SyntheticProducts predictions/heatmaps docs/assets/heatmaps.png
"""

import sys
from pathlib import Path

from PIL import Image

IMAGES = (
    "blister/test/missing_tablet/001.png",
    "bottle_cap/test/scratch/005.png",
    "circuit_board/test/missing_part/001.png",
    "fabric/test/hole/001.png",
    "oak/test/crack/001.png",
    "washer/test/rust/001.png",
)
SIDE, GAP = 160, 4


def main(images: Path, heatmaps: Path, output: Path) -> None:
    """Paste images over their heatmaps.

    Args:
        images: Folder of the products.
        heatmaps: Folder that `anomalib-uniad predict` wrote.
        output: The picture.
    """
    step = SIDE + GAP
    picture = Image.new("RGB", (step * len(IMAGES) - GAP, step * 2 - GAP), "white")
    for column, name in enumerate(IMAGES):
        image = Image.open(images / name).convert("RGB")
        heatmap = Image.open(next(heatmaps.rglob(str(Path(name).with_suffix(".jpg"))))).crop(
            (0, 0, *image.size)
        )  # without scale and text
        for row, tile in enumerate((image, heatmap)):
            picture.paste(tile.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (column * step, row * step))
    output.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(128).save(output, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
