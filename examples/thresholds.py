# SPDX-License-Identifier: Apache-2.0
"""Compare what a model decides by itself with decisions by a threshold per product that is told.

python examples/thresholds.py model.ckpt mydata
"""

import sys

from anomalib.engine import Engine

from anomalib_uniad import MultiCategory, PerCategoryEvaluator, UniAD


def main(checkpoint: str, root: str) -> dict[str, float]:
    """Test with both; return the F1 score of the decisions for each.

    Args:
        checkpoint: A checkpoint of a training on the same folder: the images that are tested here are not those from
            which it has its thresholds.
        root: Folder of the products, see docs/own-data.md.
    """
    scores = {}
    for thresholds in ("global", "category"):
        model = UniAD.load_from_checkpoint(checkpoint, evaluator=PerCategoryEvaluator(thresholds=thresholds))
        (results,) = Engine().test(model=model, datamodule=MultiCategory(root=root))
        scores[thresholds] = results["image_F1Score"]
    for category, levels in model.category_thresholds.items():
        print(f"{category}: threshold of images {levels['image']:.4g}, of pixels {levels['pixel']:.4g}")
    print(f"F1 score of decisions: {scores['global']:.4f} by itself, {scores['category']:.4f} per product that is told")
    return scores


if __name__ == "__main__":
    main(*sys.argv[1:])
