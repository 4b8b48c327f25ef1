# SPDX-License-Identifier: Apache-2.0
"""Train one UniAD on your own products, test it, and say where everything is.

    python examples/train_own_folder.py mydata

`mydata` has a folder per product, see docs/own-data.md.
"""

import sys
from pathlib import Path
from typing import Any

from anomalib.engine import Engine

from anomalib_uniad import MultiCategory, UniAD

# A small model with a fast recipe, for a CPU; UniAD() has the paper's.
SMALL: dict[str, Any] = {
    "layers": [1, 2, 3, 4],
    "hidden_dim": 128,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "feedforward_dim": 512,
    "dropout": 0.0,
    "learning_rate": 1e-3,
    "feature_cache": "memory",
}


def main(root: str, epochs: int = 100, **arguments: Any) -> Path:
    """Train and test; return the checkpoint.

    Args:
        root: Folder of the products.
        epochs: Number of epochs.
        **arguments: Arguments of UniAD, instead of those above.
    """
    model = UniAD(**{**SMALL, "lr_decay_epoch": max(1, int(0.8 * epochs)), "seed": 0, **arguments})
    # Part of the images of each product is set aside for the thresholds: neither trained on nor tested.
    datamodule = MultiCategory(root=root, train_batch_size=8)
    engine = Engine(max_epochs=epochs, check_val_every_n_epoch=epochs)
    engine.train(model=model, datamodule=datamodule)
    checkpoint = Path(engine.trainer.default_root_dir, "weights", "lightning", "model.ckpt")
    print(f"Metrics, curves and heatmaps: {engine.trainer.default_root_dir}\nCheckpoint: {checkpoint}")
    return checkpoint


if __name__ == "__main__":
    main(sys.argv[1])
