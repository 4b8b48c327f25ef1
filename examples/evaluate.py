# SPDX-License-Identifier: Apache-2.0
"""Test a checkpoint on a folder of products, and print each metric per product.

python examples/evaluate.py model.ckpt mydata
"""

import sys

from anomalib.engine import Engine

from anomalib_uniad import MultiCategory, PerCategoryEvaluator, UniAD


def main(checkpoint: str, root: str) -> dict[str, float]:
    """Test; return the value of each metric, `image_AUROC` for the mean and `image_AUROC/bottle` for one product.

    Args:
        checkpoint: A checkpoint of UniAD.
        root: Folder of the products, as in the training: the same images are set aside.
    """
    # Pixels are compared at the size of the image files; the default is the size to which the model resizes.
    model = UniAD.load_from_checkpoint(checkpoint, evaluator=PerCategoryEvaluator(pixel_resolution="original"))
    engine = Engine()
    (results,) = engine.test(model=model, datamodule=MultiCategory(root=root))
    for name, value in results.items():
        print(f"{name}: {value:.4f}")
    return dict(results)


if __name__ == "__main__":
    main(*sys.argv[1:])
