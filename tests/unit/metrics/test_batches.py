# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from anomalib_uniad.metrics.batches import OwnImages, select
from replay import make_batch


@pytest.mark.parametrize(("rank", "counts"), [(0, [4, 4, 4, 1]), (1, [4, 4, 4, 1]), (2, [4, 4, 4, 0])])
def test_repeated_images_do_not_count(rank, counts):
    """Each of 3 processes gets 13 of 38 images; the last one gets one of them a second time."""
    sampler = DistributedSampler(range(38), num_replicas=3, rank=rank, shuffle=False)
    own = OwnImages([DataLoader(range(38), batch_size=4, sampler=sampler), DataLoader(range(8), batch_size=4)])
    assert [own.count(size) for size in (4, 4, 4, 1)] == counts
    assert own.count(4, dataloader_idx=1) == own.count(4, dataloader_idx=1) == 4


@pytest.mark.parametrize("rows", [[0], [1, 2], [3, 0], [0, 1, 2, 3]])
def test_select(rows):
    batch = make_batch(["a", "b", "c", "d"], [0, 1, 1, 0]).update(explanation=["w", "x", "y", "z"])
    part = select(batch, rows)
    assert type(part) is type(batch)
    assert part.image_path == [batch.image_path[row] for row in rows]
    assert part.explanation == [batch.explanation[row] for row in rows]
    for name in ("image", "gt_label", "gt_mask", "pred_score", "anomaly_map", "pred_mask"):
        torch.testing.assert_close(getattr(part, name), getattr(batch, name)[rows])
    assert part.mask_path is None
    assert len(batch) == 4
