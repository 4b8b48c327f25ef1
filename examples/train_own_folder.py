# SPDX-License-Identifier: Apache-2.0
"""Train one UniAD on your own products, test it, and say where everything is.

    python examples/train_own_folder.py mydata

`mydata` has a folder per product, see docs/own-data.md.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from anomalib.engine import Engine

from anomalib_uniad import MultiCategory, UniAD

# The fast recipe; UniAD() has the paper's, which wants a GPU.
FAST = Path(__file__).parents[1] / "configs" / "model" / "uniad_fast.yaml"


def main(root: str, epochs: int = 20, **arguments: Any) -> Path:
    """Train and test; return the checkpoint.

    Args:
        root: Folder of the products.
        epochs: Number of epochs.
        **arguments: Arguments of UniAD, instead of those of the recipe.
    """
    model = UniAD(**{**yaml.safe_load(FAST.read_text())["init_args"], **arguments})
    # Part of the images of each product is set aside for the thresholds: neither trained on nor tested.
    datamodule = MultiCategory(root=root, train_batch_size=8)
    engine = Engine(max_epochs=epochs, check_val_every_n_epoch=epochs)
    engine.train(model=model, datamodule=datamodule)
    checkpoint = Path(engine.trainer.default_root_dir, "weights", "lightning", "model.ckpt")
    print(f"Metrics, curves and heatmaps: {engine.trainer.default_root_dir}\nCheckpoint: {checkpoint}")
    return checkpoint


if __name__ == "__main__":
    main(sys.argv[1])
