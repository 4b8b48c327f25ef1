# SPDX-License-Identifier: Apache-2.0
"""Thirty products out of the six generated ones: others in colour, turned and mirrored, in a folder for benchmarks.

python benchmarks/many_products.py --output datasets/many_products
"""

from pathlib import Path

import cv2
import numpy as np
from jsonargparse import auto_cli
from numpy.typing import NDArray

from anomalib_uniad.synthetic.synthetic_products import CATEGORIES, SyntheticProducts
from harness import at_least

# Of each variant: order of the colours red, green and blue, their brightness, quarter turns, whether it is mirrored.
VARIANTS = (
    ((0, 1, 2), (1.0, 1.0, 1.0), 0, False),
    ((2, 1, 0), (1.0, 0.85, 0.55), 1, False),
    ((1, 0, 2), (0.55, 0.8, 1.0), 2, False),
    ((0, 2, 1), (0.8, 0.55, 0.75), 3, False),
    ((2, 0, 1), (0.6, 0.6, 0.6), 0, True),
)


def many_products(
    output: Path = Path("datasets/many_products"),
    source: Path = Path("datasets/SyntheticProducts"),
    count: int = 30,
) -> None:
    """Write products in the layout of MVTec AD, ``<category>`` and ``<category>_<number of the variant>``.

    Args:
        output: Where they are written; a product that is there is left as it is.
        source: The six products; those that are not there are generated.
        count: Number of products, the first ones in the order of variants: all six, all six in other colours, ...
    """
    at_least(1, count=count)
    most = len(CATEGORIES) * len(VARIANTS)
    if count > most:
        raise ValueError(f"count must be at most {most}, got {count}.")
    SyntheticProducts(root=source).prepare_data()
    products = [(category, variant) for variant in range(len(VARIANTS)) for category in CATEGORIES]
    for category, variant in products[:count]:
        folder = output / (f"{category}_{variant}" if variant else category)
        for file in sorted((source / category).rglob("*.png")) if not folder.exists() else ():
            target = folder / file.relative_to(source / category)
            target.parent.mkdir(parents=True, exist_ok=True)
            picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(target), vary(picture, variant))


def vary(picture: NDArray[np.uint8], variant: int) -> NDArray[np.uint8]:
    """Turn and mirror an image (H, W, 3), blue first as OpenCV has it, or a mask (H, W); colour the image."""
    order, brightness, turns, mirrored = VARIANTS[variant]
    if picture.ndim == 3:
        red_first = picture[..., ::-1][..., list(order)] * np.array(brightness)
        picture = np.round(red_first[..., ::-1]).astype(np.uint8)
    turned = np.rot90(picture, turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


if __name__ == "__main__":
    auto_cli(many_products, as_positional=False)
