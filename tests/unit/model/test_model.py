# SPDX-License-Identifier: Apache-2.0
"""UniADModel and its backbone, loss, map and score."""

import inspect
import socket

import numpy as np
import pytest
import timm
import torch
from anomalib.data import InferenceBatch
from safetensors.torch import save_file
from torch.nn import functional as F

from anomalib_uniad.errors import InputError
from anomalib_uniad.model import ReconstructionTransformer, UniAD, UniADModel, torch_model
from anomalib_uniad.model.anomaly_map import AnomalyMap, AnomalyScore
from anomalib_uniad.model.components import Backbone, backbone, weights_hub
from anomalib_uniad.model.loss import ReconstructionLoss

SMALL = {
    "backbone": "resnet18",
    "pre_trained": False,
    "image_size": (64, 96),
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "feedforward_dim": 64,
    "neighbor_size": (3, 3),
}


def test_trainable_parameters_of_the_paper() -> None:
    model = UniADModel(pre_trained=False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 7_717_392
    assert sum(model.backbone.channels) == 272
    assert model.backbone.strides == [2, 4, 8, 16]
    assert model.grid_size == (14, 14)


def test_defaults_are_the_same_in_torch_and_lightning() -> None:
    torch_defaults = inspect.signature(UniADModel).parameters
    lightning_defaults = inspect.signature(UniAD).parameters
    scalars = {"image_size": 224, "neighbor_size": 7, "neighbor_mask": True, "tiles": 1}
    for name, parameter in torch_defaults.items():
        assert lightning_defaults[name].default == scalars.get(name, parameter.default), name


def test_training_returns_features_and_evaluation_a_prediction() -> None:
    model = UniADModel(**SMALL)
    images = torch.randn(2, 3, 64, 96)
    reconstruction, target = model.train()(images)
    assert reconstruction.shape == target.shape == (2, sum(model.backbone.channels), 4, 6)
    prediction = model.eval()(images)
    assert isinstance(prediction, InferenceBatch)
    assert prediction.anomaly_map.shape == (2, 1, 64, 96)
    assert prediction.pred_score.shape == (2,)
    assert prediction.anomaly_map.isfinite().all()


def test_every_trainable_parameter_gets_a_gradient_and_the_backbone_none() -> None:
    model = UniADModel(**SMALL).train()
    ReconstructionLoss()(*model(torch.randn(2, 3, 64, 96))).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_frozen_stays_frozen() -> None:
    model = UniADModel(**SMALL)
    model.train()
    assert model.training
    assert not any(module.training for module in model.backbone.modules())
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model(torch.randn(2, 3, 64, 96))
    for key, value in model.backbone.state_dict().items():
        assert value.equal(before[key]), key


def test_mask_and_position_are_not_in_the_checkpoint_and_built_once() -> None:
    model = UniADModel(**SMALL, position_embedding="sine")
    assert not any("visible" in key or "embedding" in key for key in model.state_dict())
    buffers = [value.data_ptr() for _, value in model.named_buffers()]
    model(torch.randn(1, 3, 64, 96))
    assert buffers == [value.data_ptr() for _, value in model.named_buffers()]


def test_target_stays_clean_under_jitter() -> None:
    model = UniADModel(**SMALL, dropout=0.0).train()
    images = torch.randn(1, 3, 64, 96)
    (first, target), (second, again) = model(images), model(images)
    assert target.equal(again)
    assert not first.equal(second)


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training: bool) -> None:
    torch.manual_seed(0)
    model = UniADModel(**SMALL, dropout=0.0, jitter_scale=0.0).train(training)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images)
            if training:
                exact, rough = ReconstructionLoss()(*exact), ReconstructionLoss()(*rough)
    exact, rough = (exact, rough) if training else (exact.anomaly_map, rough.anomaly_map)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.03 * exact.abs().max()


def test_other_image_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"built for images of \(64, 96\), got \(96, 64\)"):
        UniADModel(**SMALL)(torch.zeros(1, 3, 96, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (100, 96)}, r"image_size \(100, 96\) must be a positive multiple of feature_stride"),
        ({"feature_stride": 0}, "feature_stride"),
        ({"hidden_dim": 30}, r"hidden_dim \(30\) must be a multiple of num_heads"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1"),
        ({"num_heads": 0}, "num_heads must be at least 1"),
        ({"num_encoder_layers": 0}, "num_encoder_layers must be at least 1"),
        ({"num_decoder_layers": 0}, "num_decoder_layers must be at least 1"),
        ({"feedforward_dim": -1}, "feedforward_dim must be at least 1"),
        ({"dropout": 1.2}, "dropout must lie in"),
        ({"position_embedding": "none"}, "position_embedding must be"),
        ({"neighbor_size": (9, 13)}, "hides the whole 4 x 6 grid"),
        ({"jitter_probability": 2.0}, "jitter_probability must lie in"),
        ({"jitter_scale": -2.0}, "jitter_scale must be at least 0"),
        ({"image_score": "median"}, "image_score must be"),
        ({"score_pool_size": 0}, "score_pool_size must be at least 1"),
        ({"score_pool_size": 65}, "score_pool_size"),
        ({"score_top_fraction": 0.0}, r"score_top_fraction must lie in \(0, 1\], got 0.0"),
        ({"backbone": "resnet_of_nobody"}, "timm knows no backbone 'resnet_of_nobody'"),
        ({"layers": ()}, "layers must choose at least one"),
        ({"layers": (0, 7)}, r"no layers \[7\]; it has \[0, 1, 2, 3, 4\]"),
        ({"layers": ("layer1", "layer9")}, r"no layers \['layer9'\]"),
        ({"layers": (2, 1)}, "order of the backbone"),
        ({"layers": (1, 1)}, "without repetition"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniADModel(**{**SMALL, **arguments})


def test_layers_by_name_and_by_index_are_the_same() -> None:
    by_name = Backbone("resnet18", ["layer1", "layer3"], pre_trained=False)
    by_index = Backbone("resnet18", [1, 3], pre_trained=False)
    assert by_name.channels == by_index.channels == [64, 256]
    assert by_name.strides == by_index.strides == [4, 16]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "convnext_atto"])
def test_backbone_weights_of_the_whole_model(tmp_path, name: str, suffix: str) -> None:
    whole = timm.create_model(name, pretrained=False)
    path = tmp_path / f"weights{suffix}"
    state = {key: value.clone() for key, value in whole.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    backbone = Backbone(name, [0, 1, 2], weights=path)
    images = torch.randn(1, 3, 64, 64)
    expected = whole.eval().forward_intermediates(images, intermediates_only=True)
    actual = backbone(images)
    assert len(actual) == 3
    for features in actual:
        assert any(features.shape == x.shape and torch.allclose(features, x, atol=1e-5) for x in expected)


def test_backbone_weights_that_do_not_fit(tmp_path) -> None:
    state = timm.create_model("resnet18", pretrained=False).state_dict()
    state["conv1.weight"] = state["conv1.weight"][:, :1].clone()
    state["nonsense.weight"] = state.pop("layer2.0.conv1.weight")
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="does not fit the backbone 'resnet18'") as error:
        Backbone("resnet18", [1, 2], weights=tmp_path / "bad.safetensors")
    message = str(error.value)
    assert "missing: layer2.0.conv1.weight" in message
    assert "unexpected: nonsense.weight" in message
    assert "conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)" in message
    assert "bad.safetensors" in message


def test_backbone_weights_that_are_not_there(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file '.*gone\.safetensors'"):
        Backbone("resnet18", [1], weights=tmp_path / "gone.safetensors")


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pth", "code.pth", "list.pth"])
def test_backbone_weights_that_cannot_be_read(tmp_path, name: str) -> None:
    path = tmp_path / name
    if name == "code.pth":
        torch.save({"a": np.dtype("float32").type, "b": Backbone}, path)  # classes: nothing of them is executed
    elif name == "list.pth":
        torch.save([torch.zeros(1)], path)
    else:
        path.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=f"{name}' cannot be read as safetensors or torch weights"):
        Backbone("resnet18", [1], weights=path)


def test_hub_that_cannot_be_reached(monkeypatch, tmp_path) -> None:
    """The client of the hub would try for a minute, also where the weights are in its cache."""

    def fetch(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fetch)
    with pytest.raises(ConnectionError, match=r"'resnet18' .*hub cannot be reached.*backbone_weights=FILE"):
        Backbone("resnet18", [1], pre_trained=True)
    with monkeypatch.context() as reachable:
        reachable.setattr(backbone, "is_reachable", lambda: True)
        with pytest.raises(ConnectionError, match=r"'resnet18' could not be fetched \(OSError: no route to host\)"):
            Backbone("resnet18", [1], pre_trained=True)
    whole = timm.create_model("resnet18", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")

    def cached(repository: str, filename: str, revision: str | None) -> str | None:
        assert (repository, revision) == ("timm/resnet18.a1_in1k", None)
        return str(tmp_path / filename) if (tmp_path / filename).is_file() else None

    monkeypatch.setattr(weights_hub, "try_to_load_from_cache", cached)
    assert torch.equal(Backbone("resnet18", [1]).features.conv1.weight, whole.conv1.weight)


def test_hub_is_asked_once(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(weights_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(weights_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(weights_hub, "getproxies", dict)
        assert weights_hub.is_reachable()
    assert not weights_hub.is_reachable()
    monkeypatch.setattr(weights_hub, "getproxies", lambda: {"http": "http://proxy"})
    assert weights_hub.is_reachable()
    assert weights_hub.is_on_hub("resnet18")
    assert not weights_hub.is_on_hub("resnet81")


def test_the_former_backbone_is_named(tmp_path) -> None:
    former = dict(UniAD(**SMALL).hparams) | {"backbone": "resnet10_synthetic"}
    content = {"hyper_parameters": former, "state_dict": {"model.transformer.x": torch.zeros(1)}}
    torch.save({**content, "pytorch-lightning_version": "2.6.0"}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=r"'resnet10_synthetic' is no longer part .*train again with backbone=tf_eff"):
        UniAD.load_from_checkpoint(tmp_path / "model.ckpt")


def test_loss_is_the_mean_over_all_elements() -> None:
    a, b = torch.randn(2, 2, 3, 4, 5)
    assert ReconstructionLoss()(a, b).item() == pytest.approx(((a - b) ** 2).sum().item() / a.numel())


def test_anomaly_map_is_the_length_of_the_error() -> None:
    reconstruction, target = torch.randn(2, 2, 7, 4, 6)
    result = AnomalyMap((4, 6))(reconstruction, target)
    expected = np.sqrt(((reconstruction - target).numpy() ** 2).sum(axis=1))
    np.testing.assert_allclose(result[:, 0].numpy(), expected, rtol=1e-5)
    upsampled = AnomalyMap((64, 96))(reconstruction, target)
    assert upsampled.amax().item() == pytest.approx(expected.max(), rel=1e-5)  # corners are aligned, no smoothing


def test_scores_equal_numpy() -> None:
    maps = torch.rand(3, 1, 24, 32)
    arrays = maps.numpy()[:, 0]
    windows = np.lib.stride_tricks.sliding_window_view(arrays, (16, 16), axis=(1, 2)).mean(axis=(3, 4))
    np.testing.assert_allclose(AnomalyScore("max", 16)(maps), windows.max(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(AnomalyScore("mean")(maps), arrays.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(AnomalyScore("std")(maps), arrays.std(axis=(1, 2)), rtol=1e-5)
    ranked = np.sort(arrays.reshape(3, -1))[:, ::-1]
    for fraction, count in ((0.01, 8), (1e-6, 1), (1.0, 768)):  # 7.68 pixels, at least one, all
        score = AnomalyScore("top", top_fraction=fraction)(maps)
        np.testing.assert_allclose(score, ranked[:, :count].mean(axis=1) - arrays.mean(axis=(1, 2)) / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (4, 6), (33, 50)])
def test_upsampling_by_matrices_is_the_interpolation(size: tuple[int, int]) -> None:
    error, make = torch.rand(2, 1, 4, 6), AnomalyMap(size)
    expected = F.interpolate(error, size=size, mode="bilinear", align_corners=True)
    assert make.upsample(error).equal(expected)
    pooled = F.avg_pool2d(expected, 3, stride=1)
    torch.testing.assert_close(make.upsample(error, pool_size=3), pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tiles", [(1, 1), (1, 2)])
def test_the_backbone_takes_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch, tiles: tuple[int, int]) -> None:
    model = UniADModel(**SMALL, tiles=tiles).eval()
    images = torch.rand(5, 3, *model.image_size)
    taken = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].shape))
    with torch.no_grad():
        together = model.extract(images)
        height, width = taken.pop()[2:]
        monkeypatch.setattr(torch_model, "_PIXELS_AT_ONCE", 3 * height * width)
        torch.testing.assert_close(model.extract(images), together)
    assert [len(some) for some in torch.empty(5 * tiles[1]).split(3)] == [shape[0] for shape in taken]


@pytest.mark.parametrize("arguments", [{}, {"image_score": "top", "tiles": (1, 2)}])
def test_exported_graph_computes_the_same(arguments: dict) -> None:
    """Some operations are replaced by others when a graph is written."""
    model = UniADModel(**SMALL, **arguments).eval()
    images = torch.rand(2, 3, *model.image_size)
    with torch.no_grad():
        expected = model(images)
        program = torch.export.export(model, (images,), strict=False)
        made = program.module()(images)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not {name for name in operations if "avg_pool2d" in name}, "pooled from the tokens"
    torch.testing.assert_close(made.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.pred_score, expected.pred_score, rtol=1e-4, atol=1e-5)


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = ReconstructionTransformer(in_channels=64, grid_size=(8, 8), neighbor_size=(3, 3))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.dim() == 2 and ("projection" in name or "proj" in name or "feedforward" in name):
            bound = (6 / sum(parameter.shape)) ** 0.5  # xavier uniform
            assert 0.9 * bound < parameter.abs().max() <= bound, name
    queries = torch.cat([layer.query.flatten() for layer in model.decoder.layers])
    assert abs(queries.mean()) < 0.05
    assert abs(queries.std() - 1) < 0.05


@pytest.mark.parametrize(("name", "blocks"), [("tf_efficientnet_b0", 5), ("mobilenetv2_100", 5), ("resnet18", None)])
def test_blocks_behind_the_deepest_map_are_dropped(name: str, blocks: int | None) -> None:
    whole = Backbone(name, [0, 1, 2, 3], pre_trained=False)
    backbone = Backbone(name, [0, 1, 2, 3], pre_trained=False)
    backbone.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 64, 64)
    backbone.prepare((64, 64))
    if blocks is not None:
        assert len(whole.features.blocks) == 7
        assert len(backbone.features.blocks) == blocks
    assert all(map(torch.equal, backbone(images), whole(images)))
    backbone.load_state_dict(whole.state_dict())  # weights of a model that still has them
    deepest = Backbone(name, [0, 4], pre_trained=False)
    count = len(list(deepest.modules()))
    deepest.prepare((64, 64))
    assert len(list(deepest.modules())) == count


def test_transformer_backbone_at_another_size() -> None:
    """Position embeddings follow the size of the image, in weights that come later as well."""
    arguments = {**SMALL, "backbone": "vit_tiny_patch16_224", "layers": (3, 7)}
    model = UniADModel(**{**arguments, "image_size": (64, 96)}).eval()
    assert [tuple(x.shape[2:]) for x in model.backbone(torch.zeros(1, 3, 64, 96))] == [(4, 6), (4, 6)]
    again = UniADModel(**{**arguments, "image_size": (64, 96)}).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(again(images).anomaly_map, model(images).anomaly_map)
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    with pytest.raises(ValueError, match=r"patches of 14x14.*multiple of that, got \(64, 96\); \(70, 98\) is near"):
        UniADModel(**{**arguments, "backbone": "vit_small_patch14_dinov2"})
