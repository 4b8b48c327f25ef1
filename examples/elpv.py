# SPDX-License-Identifier: Apache-2.0
"""Photographs of solar cells as a folder of two products, ready for training.

    pip install elpv-dataset
    python examples/elpv.py datasets/elpv
    anomalib train --config configs/fast/cpu.yaml --data.root datasets/elpv

The ELPV dataset (https://github.com/zae-bayern/elpv-dataset) has 2,624 electroluminescence images of cells, mono- and
polycrystalline, 300 x 300 pixels, grey, without masks. Experts gave each a probability of being defective: 0 is good
here, 2/3 and 1 are defective, 1/3 is left out. The images are under CC BY-NC-SA 4.0: for research, not for a product,
and no part of this package.
"""

import shutil
import sys
from collections import Counter
from importlib.resources import as_file, files
from pathlib import Path

GOOD, DEFECTIVE, LEFT_OUT = "good", "defective", "left out"


def label_of(probability: float) -> str:
    """Label of a cell by the probability that it is defective."""
    if probability == 0:
        return GOOD
    return DEFECTIVE if probability > 0.5 else LEFT_OUT


def main(folder: Path) -> Counter[tuple[str, str]]:
    """Make ``<folder>/<product>/<label>/<image>``.

    Args:
        folder: Where to; must not be there.

    Returns:
        Counter[tuple[str, str]]: Number of images of each product and label.
    """
    counts: Counter[tuple[str, str]] = Counter()
    with as_file(files("elpv_dataset") / "data") as data:
        lines = (data / "labels.csv").read_text(encoding="utf-8").splitlines()
        folder.mkdir(parents=True)  # an error if it is there: nothing of it is replaced
        for line in lines:
            image, probability, product = line.split()
            label = label_of(float(probability))
            counts[product, label] += 1
            if label != LEFT_OUT:
                (folder / product / label).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(data / image, folder / product / label / Path(image).name)
    return counts


if __name__ == "__main__":
    for (product, label), count in sorted(main(Path(sys.argv[1])).items()):
        print(f"{product}, {label}: {count}")
