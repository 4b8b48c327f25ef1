# SPDX-License-Identifier: Apache-2.0
"""Train UniAD and PatchCore on the same products, and lay their results side by side.

    python examples/compare_with_patchcore.py mydata

`mydata` has a folder per product, see docs/own-data.md. The report is report/report.html.
"""

import sys
from pathlib import Path

import yaml
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, Patchcore

from anomalib_uniad import MultiCategory, UniAD
from anomalib_uniad.cli import main as anomalib_uniad

FAST = Path(__file__).parents[1] / "configs" / "model" / "uniad_fast.yaml"


def run(model: AnomalibModule, root: str, epochs: int) -> str:
    """Train and test a model; return the folder of its results."""
    datamodule = MultiCategory(root=root, train_batch_size=8)
    engine = Engine(max_epochs=epochs, check_val_every_n_epoch=epochs)
    engine.train(model=model, datamodule=datamodule)
    return str(engine.trainer.default_root_dir)


def main(root: str, epochs: int = 20, uniad: UniAD | None = None, patchcore: Patchcore | None = None) -> Path:
    """Train both and write the report; return its folder.

    Args:
        root: Folder of the products.
        epochs: Epochs of UniAD; PatchCore has one.
        uniad: Another UniAD than one with the fast recipe.
        patchcore: Another PatchCore than one with anomalib's defaults and images of UniAD's size.
    """
    if uniad is None:
        uniad = UniAD(**yaml.safe_load(FAST.read_text())["init_args"])
    if patchcore is None:  # with images of the same size, so that pixel metrics can be compared
        patchcore = Patchcore(pre_processor=Patchcore.configure_pre_processor(uniad.input_size))
    runs = [run(uniad, root, epochs), run(patchcore, root, 1)]
    anomalib_uniad(["report", *runs, "--output", "report", "--overwrite", "true"])
    return Path("report")


if __name__ == "__main__":
    main(sys.argv[1])
