# SPDX-License-Identifier: Apache-2.0
"""Exported maps are compared with those of torch, with and without the mask."""

import pandas as pd
import pytest

from anomalib_uniad import UniAD
from anomalib_uniad.benchmark.export_parity import compare
from anomalib_uniad.benchmark.export_tables import export_parity as export_parity_table
from small import SMALL


@pytest.mark.filterwarnings("ignore")  # torch.onnx and openvino warn about themselves
@pytest.mark.parametrize("neighbor_mask", [True, False])
def test_mask_and_batches(neighbor_mask: bool) -> None:
    arguments = {**SMALL, "layers": (0, 1), "neighbor_mask": neighbor_mask}
    model = UniAD(**arguments, seed=0, evaluator=False, post_processor=False).eval()
    masks = [module.visible for module in model.modules() if hasattr(module, "visible")]
    rows = pd.DataFrame(compare(model, batches=(1, 3)))
    assert list(rows["batch"]) == [1, 3]
    assert (rows[["map", "score"]] < 1e-4).all(axis=None)
    assert (rows["masked"] == (3 if neighbor_mask else 0)).all()
    assert ((rows["without_mask"] > 0.01) == neighbor_mask).all()
    after = [module.visible for module in model.modules() if hasattr(module, "visible")]
    assert all(mask is kept for mask, kept in zip(masks, after, strict=True))  # the model is as it was
    table = export_parity_table(rows.assign(backbone="resnet18", image_size=64, padding="zeros"))
    assert f"Attentions with a mask in each file: {3 if neighbor_mask else 0}." in table
