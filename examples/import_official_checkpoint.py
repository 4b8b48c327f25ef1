# SPDX-License-Identifier: Apache-2.0
"""Take over a checkpoint of the authors' code, and learn its thresholds from your own images.

python examples/import_official_checkpoint.py ckpt.pth.tar mydata
"""

import sys
from pathlib import Path

from anomalib.engine import Engine

from anomalib_uniad import MultiCategory, UniAD


def main(checkpoint: str, root: str, output: str = "uniad.ckpt") -> Path:
    """Import, validate, save; return the new checkpoint.

    Args:
        checkpoint: The authors' file. Nothing in it is executed.
        root: Folder of the products, see docs/own-data.md.
        output: The new checkpoint, which anomalib's commands take.
    """
    model = UniAD.from_official(checkpoint)
    engine = Engine()
    # Thresholds come from images that are set aside, so that the others can be tested with them.
    engine.validate(model=model, datamodule=MultiCategory(root=root))
    engine.trainer.save_checkpoint(output)
    print(f"Wrote {output}; thresholds of {', '.join(model.category_thresholds) or 'no categories'}.")
    return Path(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
