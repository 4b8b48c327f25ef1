# SPDX-License-Identifier: Apache-2.0
"""The loop that is compared with computes what the model computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_uniad.benchmark.training.plain_loop import ImageFiles, PlainLoop, PlainTransformer, loop_mask
from anomalib_uniad.model import ReconstructionTransformer
from anomalib_uniad.model.components import neighbor_mask

SMALL = {"hidden_dim": 16, "num_heads": 2, "feedforward_dim": 24, "dropout": 0.0}


@pytest.mark.parametrize("neighbor_size", [(1, 1), (3, 3), (2, 5)])
def test_the_mask_is_ours(neighbor_size: tuple[int, int]) -> None:
    mask = loop_mask((5, 6), neighbor_size)
    assert torch.equal(mask == 0, neighbor_mask((5, 6), neighbor_size))
    assert torch.equal(mask.isinf(), mask != 0)


@pytest.mark.parametrize("training", [False, True])
def test_the_outputs_and_gradients_are_ours(training: bool) -> None:
    torch.manual_seed(0)
    ours = ReconstructionTransformer(
        10, (4, 5), num_encoder_layers=2, num_decoder_layers=2, neighbor_size=(3, 3), **SMALL
    )
    plain = PlainTransformer(10, (4, 5), num_layers=2, neighbor_size=(3, 3), **SMALL)
    plain.load_state_dict(ours.state_dict())
    tokens = torch.randn(3, 20, 10)
    first, second = ours.train(training)(tokens), plain.train(training)(tokens)
    torch.testing.assert_close(second, first, atol=1e-5, rtol=0)
    first.square().sum().backward()
    second.square().sum().backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, atol=1e-4, rtol=1e-3)


def _write(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_images_are_normalised(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    image = ImageFiles([tmp_path / "red.png"], 4)[0]
    assert image.shape == (3, 4, 4)
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]))


def test_the_loop_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    paths = [_write(tmp_path / f"{n}.png", n) for n in range(4)]
    small = {**SMALL, "num_layers": 1, "neighbor_size": (1, 1)}
    loop = PlainLoop(paths, torch.device("cpu"), 2, 0, backbone="resnet18", image_size=48, **small)
    frozen = [p.clone() for p in loop.backbone.parameters()]
    before = loop.transformer.encoder.layers[0].self_attention.in_proj_weight.clone()
    losses = [*loop.steps(), *loop.steps(), *loop.steps()]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert not torch.equal(before, loop.transformer.encoder.layers[0].self_attention.in_proj_weight)
    assert all(torch.equal(a, b) for a, b in zip(frozen, loop.backbone.parameters(), strict=True))
    assert not loop.backbone.training
