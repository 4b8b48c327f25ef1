# SPDX-License-Identifier: Apache-2.0
"""The reconstruction against reference outputs of the authors' implementation."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from anomalib_uniad.deploy.official.checkpoint import rename_reconstruction
from anomalib_uniad.model import ReconstructionTransformer
from anomalib_uniad.model.anomaly_map import AnomalyMap
from anomalib_uniad.model.loss import ReconstructionLoss

GOLDEN_DIR = Path(os.environ.get("UNIAD_GOLDEN_DIR") or Path(__file__).parents[2] / "golden")
TOLERANCE = 1e-4  # of the largest absolute value


def golden_files(pattern: str) -> list:
    """Every matching file as a parameter; a folder without any is a failure, not an empty test."""
    return sorted(GOLDEN_DIR.glob(pattern)) or [GOLDEN_DIR / pattern]


def build(golden: dict[str, np.ndarray]) -> ReconstructionTransformer:
    config = json.loads(str(golden["config"]))
    neighbors = config.get("neighbor_mask") or {"neighbor_size": (1, 1), "mask": (False, False, False)}
    model = ReconstructionTransformer(
        in_channels=config["planes"],
        grid_size=tuple(config["feature_size"]),
        hidden_dim=config["hidden_dim"],
        num_heads=config["nhead"],
        num_encoder_layers=config["num_encoder_layers"],
        num_decoder_layers=config["num_decoder_layers"],
        feedforward_dim=config["dim_feedforward"],
        dropout=config["dropout"],
        position_embedding=config["pos_embed_type"],
        neighbor_size=tuple(neighbors["neighbor_size"]),
        neighbor_mask=tuple(neighbors["mask"]),
    )
    model.load_state_dict(weights(golden, "w/"))
    return model


def weights(golden: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return rename_reconstruction(
        {key.removeprefix(prefix): torch.from_numpy(golden[key]) for key in golden if key.startswith(prefix)}
    )


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def assert_close(actual: torch.Tensor, expected: np.ndarray, what: str) -> None:
    expected = torch.from_numpy(expected)
    assert actual.shape == expected.shape, what
    assert expected.isfinite().all(), f"{what}: the reference is damaged"
    difference = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert difference < TOLERANCE, f"{what}: {difference:.2e} of the largest value"


@pytest.mark.parametrize("path", golden_files("reconstruction_*.npz"), ids=lambda path: path.stem)
def test_golden_reconstruction(path: Path) -> None:
    golden = load(path)
    model = build(golden).eval()
    features = torch.from_numpy(golden["feature_align"])  # (B, C, h, w)
    with torch.no_grad():
        tokens = model(features.flatten(2).transpose(1, 2))
    reconstruction = tokens.transpose(1, 2).reshape(features.shape)
    assert_close(reconstruction, golden["feature_rec"], "feature_rec")
    stride = json.loads(str(golden["config"]))["stride"]
    image_size = (features.shape[2] * stride, features.shape[3] * stride)
    assert_close(AnomalyMap(image_size)(reconstruction, features), golden["pred"], "pred")


@pytest.mark.parametrize("path", golden_files("training*.npz"), ids=lambda path: path.stem)
def test_golden_training(path: Path) -> None:
    golden = load(path)
    model = build(golden).train()
    loss_function = ReconstructionLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    losses, norms = [], []
    for features in torch.from_numpy(golden["features"]):  # (B, C, h, w)
        tokens = features.flatten(2).transpose(1, 2)
        loss = loss_function(model(tokens).transpose(1, 2).reshape(features.shape), features)
        optimizer.zero_grad()
        loss.backward()
        norms.append(clip_grad_norm_(model.parameters(), 0.1))
        optimizer.step()
        losses.append(loss.detach())
    assert_close(torch.stack(losses).double(), golden["losses"], "losses")
    assert_close(torch.stack(norms).double(), golden["grad_norms"], "grad_norms")
    final = weights(golden, "final/")
    state = model.state_dict()
    assert final.keys() == state.keys()
    for key, expected in final.items():
        assert_close(state[key], expected.numpy(), key)


def test_golden_damage_is_found(tmp_path: Path) -> None:
    golden = load(golden_files("reconstruction_*.npz")[0])
    golden["feature_rec"] = golden["feature_rec"] + 1e-3 * np.abs(golden["feature_rec"]).max()
    np.savez(tmp_path / "damaged.npz", **golden)
    with pytest.raises(AssertionError, match="feature_rec"):
        test_golden_reconstruction(tmp_path / "damaged.npz")
