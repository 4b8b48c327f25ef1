# SPDX-License-Identifier: Apache-2.0
"""Tiles against each tile by hand; padding counts for nothing."""

import pytest
import torch
from torch.nn import functional as F

from anomalib_uniad import UniAD
from anomalib_uniad.errors import InputError
from anomalib_uniad.model import UniADModel
from anomalib_uniad.model.anomaly_map import AnomalyMap, AnomalyScore
from anomalib_uniad.model.components.tiles import Tiles
from small import SMALL

PLAIN = {**SMALL, "image_size": (64, 64), "neighbor_size": (3, 3)}


def joined_by_hand(maps: torch.Tensor, tiles: Tiles) -> torch.Tensor:
    """Mean of the maps of tiles (R, S, t, u), weighted by the distance to the end of a tile where two overlap."""
    total, weights = torch.zeros(tiles.image_size), torch.zeros(tiles.image_size)
    (height, width), (rows, columns) = tiles.tile_size, tiles.count
    for y in range(rows):
        for x in range(columns):
            weight = torch.ones(height, width)
            for axis, (place, count, side) in enumerate(((y, rows, height), (x, columns, width))):
                shared = side - tiles.steps[axis]
                for pixel in range(side):
                    line = weight[pixel] if axis == 0 else weight[:, pixel]
                    if place > 0 and pixel < shared:
                        line *= (pixel + 0.5) / shared
                    if place < count - 1 and pixel >= side - shared:
                        line *= (side - pixel - 0.5) / shared
            top, left = y * tiles.steps[0], x * tiles.steps[1]
            total[top : top + height, left : left + width] += weight * maps[y, x]
            weights[top : top + height, left : left + width] += weight
    return total / weights


@pytest.mark.parametrize(("count", "overlap"), [((1, 3), 0.125), ((2, 2), 0.5), ((3, 1), 0.0), ((2, 3), 0.3)])
def test_map_and_score_of_each_tile_alone(count: tuple[int, int], overlap: float) -> None:
    tiled = UniADModel(**PLAIN, tiles=count, tile_overlap=overlap).eval()
    alone = UniADModel(**PLAIN).eval()
    alone.load_state_dict(tiled.state_dict())
    tiles = tiled.tiles
    assert tiles is not None
    assert tiled.image_size == tuple(64 + (n - 1) * (64 - round(64 * overlap)) for n in count)
    images = torch.rand(2, 3, *tiled.image_size)
    with torch.no_grad():
        actual = tiled(images)
        for index, image in enumerate(images):
            maps = torch.empty(*count, 64, 64)
            for y in range(count[0]):
                for x in range(count[1]):
                    top, left = y * tiles.steps[0], x * tiles.steps[1]
                    maps[y, x] = alone(image[None, :, top : top + 64, left : left + 64]).anomaly_map[0, 0]
            expected = joined_by_hand(maps, tiles)
            torch.testing.assert_close(actual.anomaly_map[index, 0], expected, atol=1e-4, rtol=1e-4)
            score = F.avg_pool2d(expected[None], 16, stride=1).max()  # of the joined map
            torch.testing.assert_close(actual.pred_score[index], score, atol=1e-4, rtol=1e-4)


def test_features_of_tiles_lie_side_by_side() -> None:
    tiles = Tiles((64, 32), (4, 2), (2, 3), 0.25)
    grids = torch.rand(2 * 2 * 3, 5, 4, 2)
    mosaic = tiles.mosaic(grids)
    assert mosaic.shape == (2, 5, 8, 6)
    assert mosaic[1, :, 4:, 2:4].equal(grids[6 + 3 + 1])  # second image, second row, second column
    assert tiles.apart(mosaic).equal(grids)


def test_training_of_tiles_is_of_each_tile() -> None:
    model = UniADModel(**PLAIN, tiles=(1, 2), jitter_probability=0.0, dropout=0.0).train()
    images = torch.rand(2, 3, *model.image_size)
    reconstruction, target = model(images)
    assert reconstruction.shape == target.shape == (2, 512, 4, 8)
    alone = UniADModel(**PLAIN, jitter_probability=0.0, dropout=0.0).train()
    alone.load_state_dict(model.state_dict())
    _, left = alone(images[..., :64])
    torch.testing.assert_close(target[..., :4], left, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tiles": 0}, "tiles must be at least 1, got 0"),
        ({"tiles": [1, 2, 3]}, "tiles must be one int or 2 of them"),
        ({"tiles": 2, "tile_overlap": 0.6}, r"tile_overlap must lie in \[0, 0.5\], got 0.6"),
        ({"crop": [0, 0, 10]}, "crop must be"),
        ({"resize_mode": "fit"}, "resize_mode must be 'stretch' or 'pad'"),
        ({"resize_mode": "pad", "pre_processor": False}, "of the model's own pre_processor"),
        ({"tiles": 2, "pre_processor": UniAD.configure_pre_processor((64, 64))}, r"the tiles make \(120, 120\)"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        UniAD(**SMALL, **arguments)


@pytest.mark.parametrize("reduction", ["max", "top", "mean", "std"])
def test_padding_does_not_count(reduction) -> None:
    """Whatever the model makes of the padding, map and score are those of the covered part alone."""
    reconstruction, target = torch.rand(2, 8, 4, 4), torch.rand(2, 8, 4, 4)
    reconstruction[:, :, 0] += 100  # of which the upsampling sees something in the first covered row too
    covered = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    covered[:, :, 24:44] = True
    anomaly_map = AnomalyMap((64, 64))(reconstruction, target, covered)
    inside = AnomalyMap((64, 64))(reconstruction, target)[:, :, 24:44]
    assert anomaly_map[:, :, 24:44].equal(inside)
    lowest = inside.amin(dim=(2, 3), keepdim=True)
    assert anomaly_map[:, :, :24].equal(lowest.expand(2, 1, 24, 64))
    score = AnomalyScore(reduction, 16)
    torch.testing.assert_close(score(anomaly_map, covered), score(inside), atol=1e-5, rtol=1e-5)


def test_checkpoints_from_before_these_arguments() -> None:
    checkpoint = {"hyper_parameters": dict(UniAD(**SMALL).hparams), "state_dict": UniAD(**SMALL).state_dict()}
    for name in ("resize_mode", "crop", "tiles", "tile_overlap"):
        del checkpoint["hyper_parameters"][name]
    UniAD(**SMALL, tile_overlap=0.25).on_load_checkpoint(checkpoint)  # nothing overlaps
    for name, other in (("resize_mode", "pad"), ("crop", [0, 0, 9, 9]), ("tiles", [1, 3])):
        with pytest.raises(InputError, match=f"of another model.*{name}: .* in the checkpoint"):
            UniAD(**SMALL, **{name: other}).on_load_checkpoint(checkpoint)
