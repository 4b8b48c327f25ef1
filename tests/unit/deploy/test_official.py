# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' code: read safely, identified, taken over whole."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from anomalib_uniad import UniAD
from anomalib_uniad.deploy.official import load_official
from anomalib_uniad.deploy.official.backbone import EFFICIENTNETS, RESNETS, identify, shapes_of
from anomalib_uniad.deploy.official.safe_file import read_official
from official import ARCH, easydict_installed, generate, small_keys, write_official


def resnet(name: str = "resnet18") -> dict[str, tuple[int, ...]]:
    """Tensors of torchvision's ResNet, whose names are timm's, classifier included."""
    return shapes_of(name)


def small_arch(**kwargs: Any) -> list[dict[str, Any]]:
    arch = copy.deepcopy(ARCH)
    arch[0] = {"name": "backbone", "type": "models.backbones.resnet18", "kwargs": {"outlayers": [1, 2]}}
    arch[2]["kwargs"] = {
        "pos_embed_type": "learned",
        "hidden_dim": 16,
        "nhead": 2,
        "dropout": 0.2,
        "feature_size": [4, 6],
        "feature_jitter": {"scale": 10.0, "prob": 0.5},
        "neighbor_mask": {"neighbor_size": [3, 1], "mask": [True, False, True]},
        **kwargs,
    }
    return arch


def small_state(prefix: str = "module.", **sizes: int) -> dict[str, torch.Tensor]:
    keys = small_keys(prefix, resnet(), **{"channels": 192, "height": 4, "width": 6, **sizes})
    return generate(keys, seed=1)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_arguments_and_where_they_are_from(tmp_path: Path, prefix: str) -> None:
    official = load_official(write_official(tmp_path / "a.pth.tar", small_state(prefix), small_arch()), {})
    assert official.arguments == {
        "backbone": "resnet18",
        "layers": [1, 2],
        "image_size": [64, 96],
        "feature_stride": 16,
        "hidden_dim": 16,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "feedforward_dim": 32,
        "position_embedding": "learned",
        "num_heads": 2,
        "dropout": 0.2,
        "neighbor_size": [3, 1],
        "neighbor_mask": [True, False, True],
        "jitter_scale": 10.0,
        "jitter_probability": 0.5,
        "backbone_padding": "static",
        "backbone_padding_mode": "zeros",
        "image_score": "max",
        "score_pool_size": 16,
    }
    by_source: dict[str, set[str]] = {}
    for name, source in official.sources.items():
        by_source.setdefault(source, set()).add(name)
    assert by_source["arch"] >= {"layers", "num_heads", "neighbor_size", "neighbor_mask", "jitter_scale"}
    assert by_source["tensors"] >= {"backbone", "hidden_dim", "image_size", "feedforward_dim", "position_embedding"}
    assert by_source["default"] >= {"image_score", "backbone_padding"}
    assert official.epoch == 7


def test_without_config_the_rest_is_the_papers(tmp_path: Path) -> None:
    state = small_state(channels=64 + 128 + 256 + 512, height=14, width=14)
    path = tmp_path / "state.pth"
    torch.save(state, path)  # a state dict alone
    official = load_official(path, {"num_heads": 4, "image_score": "mean", "neighbor_mask": False})
    assert official.epoch is None
    expected = {
        "layers": [1, 2, 3, 4],
        "image_size": [224, 224],
        "num_heads": 4,
        "dropout": 0.1,
        "neighbor_size": [7, 7],
        "neighbor_mask": [False] * 3,
        "jitter_scale": 20.0,
        "jitter_probability": 1.0,
        "image_score": "mean",
    }
    assert {name: official.arguments[name] for name in expected} == expected
    assert {name for name, source in official.sources.items() if source == "given"} == {
        "num_heads",
        "image_score",
        "neighbor_mask",
    }


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"neighbor_mask": None}, {"neighbor_mask": [False] * 3, "neighbor_size": [7, 7]}),
        ({"feature_jitter": None}, {"jitter_probability": 0.0, "jitter_scale": 20.0}),
        ({"pos_embed_type": "v3"}, {"position_embedding": "learned"}),
    ],
)
def test_parts_that_are_switched_off(tmp_path: Path, kwargs: dict, expected: dict) -> None:
    official = load_official(write_official(tmp_path / "a.pth.tar", small_state(), small_arch(**kwargs)), {})
    assert {name: official.arguments[name] for name in expected} == expected


def test_sine_positions_have_no_tensors(tmp_path: Path) -> None:
    state = {key: tensor for key, tensor in small_state().items() if "pos_embed" not in key}
    sine = small_arch(pos_embed_type="sine")
    official = load_official(write_official(tmp_path / "a.pth.tar", state, sine), {})
    assert official.arguments["position_embedding"] == "sine"
    assert official.arguments["image_size"] == [64, 96]  # from the config
    path = write_official(tmp_path / "b.pth.tar", state, None)
    with pytest.raises(ValueError, match=r"24 tokens, which is no grid of 4 x 4.*image_size"):
        load_official(path, {"layers": [1, 2]})
    given = load_official(path, {"layers": [1, 2], "image_size": [96, 64]})
    assert given.arguments["image_size"] == [96, 64]


def test_every_tensor_is_used_or_named(tmp_path: Path) -> None:
    state = small_state() | {"module.neck.something.weight": torch.zeros(3)}
    model = UniAD.from_official(write_official(tmp_path / "a.pth.tar", state, small_arch()))
    own = model.model.state_dict()
    assert model.official is not None
    unused = set(model.official.unused)
    assert unused >= {"neck.something.weight", "backbone.fc.weight", "backbone.fc.bias"}
    by_value = {tensor.flatten().double().sum().item(): key for key, tensor in own.items() if tensor.numel() > 1}
    for key, tensor in state.items():
        name = key.removeprefix("module.")
        if name in unused:
            assert "layer3" in name or "layer4" in name or name.startswith(("neck.", "backbone.fc.")), name
        elif tensor.numel() > 1:
            found = by_value.get(tensor.flatten().double().sum().item())
            assert found is not None, f"{name} is neither used nor named"
            assert torch.equal(own[found].reshape(tensor.shape), tensor), name


def test_given_arguments_win_over_the_config(tmp_path: Path) -> None:
    path = write_official(tmp_path / "a.pth.tar", small_state(), small_arch())
    model = UniAD.from_official(path, neighbor_size=1, num_heads=None, backbone_padding_mode="reflect", seed=3)
    assert model.hparams.neighbor_size == (1, 1)
    assert model.hparams.num_heads == 2
    assert model.hparams.backbone_padding_mode == "reflect"
    assert model.seed == 3
    assert not model.hparams.pre_trained


@pytest.mark.parametrize(
    ("arch", "given", "message"),
    [
        ({"hidden_dim": 32}, {}, r"hidden_dim: the tensors of the checkpoint are of 16, but the config.*says 32"),
        ({}, {"image_size": 64}, r"image_size: the tensors.*\[64, 96\], but you gave \[64, 64\]"),
        ({}, {"num_encoder_layers": 2}, "num_encoder_layers: the tensors of the checkpoint are of 1, but you gave 2"),
        ({"activation": "gelu"}, {}, "trained with activation='gelu'; only 'relu'"),
        ({"normalize_before": True}, {}, "trained with normalize_before=True"),
        ({}, {"layers": [1, 3]}, r"takes 192 channels, but layers \[1, 3\] of resnet18 have 320.*1: 64, 2: 128"),
        ({}, {"layers": [1, 9]}, r"resnet18 has no layers \[1, 9\]"),
        ({}, {"backbone": "resnet34"}, "backbone: the tensors.*are of resnet18, but you gave resnet34"),
        ({"feature_size": [5, 5]}, {}, r"image_size: the tensors.*\[64, 96\], but the config.*\[80, 80\]"),
    ],
)
def test_contradictions(tmp_path: Path, arch: dict, given: dict, message: str) -> None:
    path = write_official(tmp_path / "odd.pth.tar", small_state(), small_arch(**arch))
    with pytest.raises(ValueError, match=message) as error:
        load_official(path, given)
    assert "odd.pth.tar" in str(error.value)


def test_heads_that_do_not_fit(tmp_path: Path) -> None:
    path = write_official(tmp_path / "a.pth.tar", small_state(), small_arch())
    with pytest.raises(ValueError, match="num_heads"):
        UniAD.from_official(path, num_heads=3)


def pytorch_names(name: str) -> dict[str, str]:
    """EfficientNet-PyTorch's name of each tensor of timm's model, derived the other way round."""
    blocks: dict[tuple[str, str], int] = {}
    names = {}
    for key in shapes_of(name):
        parts = key.split(".")
        if parts[0] != "blocks":
            stem = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            names[key] = ".".join([stem.get(parts[0], "_fc"), *parts[1:]])
            continue
        number = blocks.setdefault((parts[1], parts[2]), len(blocks))
        part = ".".join(parts[3:-1])
        if part.startswith("se."):
            other = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}[part]
        elif parts[1] == "0":
            other = {"conv_dw": "_depthwise_conv", "conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}[part]
        else:
            convolutions = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
            other = convolutions.get(part) or f"_bn{int(part[2:]) - 1}"
        names[key] = f"_blocks.{number}.{other}.{parts[-1]}"
    return names


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_efficientnets_are_told_apart_by_their_tensors(name: str) -> None:
    names = pytorch_names(name)
    state = {names[key]: torch.empty(shape, device="meta") for key, shape in shapes_of(name).items()}
    found, mapping = identify(state)
    assert found == name
    assert mapping == {other: key for key, other in names.items()}


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_are_told_apart_by_their_tensors(name: str) -> None:
    found, mapping = identify({key: torch.empty(shape, device="meta") for key, shape in shapes_of(name).items()})
    assert found == name
    assert all(key == other for key, other in mapping.items())


def test_backbone_that_is_not_known(tmp_path: Path) -> None:
    keys = small_keys("module.", {**resnet(), "layer5.0.conv1.weight": (3, 3, 1, 1)}, channels=192, height=4, width=6)
    path = write_official(tmp_path / "a.pth.tar", generate(keys, 1), small_arch())
    with pytest.raises(ValueError, match=r"none of resnet18.*Of resnet18, 1 tensors differ: layer5\.0\.conv1.*unknown"):
        load_official(path, {})


def test_taps_where_timm_has_none(tmp_path: Path) -> None:
    arch = small_arch()
    arch[0]["kwargs"] = {"outlayers": [1, 7]}
    with pytest.raises(ValueError, match=r"no maps at outlayers \[7\], only at \[1, 2, 3, 4\]"):
        load_official(write_official(tmp_path / "a.pth.tar", small_state(), arch), {})


@pytest.mark.parametrize("taps", [[2, 1], [1, 1]])
def test_taps_in_another_order(tmp_path: Path, taps: list[int]) -> None:
    arch = small_arch()
    arch[0]["kwargs"] = {"outlayers": taps}
    with pytest.raises(ValueError, match=r"outlayers \[., 1\] are not in the order of the backbone, or repeated"):
        load_official(write_official(tmp_path / "a.pth.tar", small_state(), arch), {})


def test_config_of_another_backbone(tmp_path: Path) -> None:
    arch = small_arch()
    arch[0]["type"] = "models.backbones.resnet50"
    with pytest.raises(ValueError, match=r"tensors are of resnet18, but the config.*says resnet50"):
        load_official(write_official(tmp_path / "a.pth.tar", small_state(), arch), {})


def test_another_network_of_the_same_shapes_is_refused(tmp_path: Path) -> None:
    """timm's efficientnet_b0 has the tensors of tf_efficientnet_b0, but other padding and another epsilon."""
    names = pytorch_names("tf_efficientnet_b0.aa_in1k")
    backbone = {names[key]: shape for key, shape in shapes_of("tf_efficientnet_b0.aa_in1k").items()}
    state = generate(small_keys("module.", backbone, channels=16 + 24 + 40 + 112), 1)
    path = write_official(tmp_path / "a.pth.tar", state, None)
    with pytest.raises(
        ValueError, match=r"of tf_efficientnet_b0\.aa_in1k, but you gave efficientnet_b0, which is another"
    ):
        load_official(path, {"backbone": "efficientnet_b0"})
    other = load_official(path, {"backbone": "tf_efficientnet_b0.ns_jft_in1k"})
    assert other.arguments["backbone"] == "tf_efficientnet_b0.ns_jft_in1k"


@pytest.mark.parametrize(
    "damage",
    [
        lambda arch: arch[2].update(kwargs=["nhead", 2]),
        lambda arch: arch[2]["kwargs"].update(neighbor_mask="yes"),
        lambda arch: arch[0].update(kwargs={"outlayers": 2}),
        lambda arch: arch[2]["kwargs"].update(feature_size={"height": 4}),
        lambda arch: arch[1].update(kwargs=7),
    ],
)
def test_damaged_config(tmp_path: Path, damage: Any) -> None:
    arch = small_arch()
    damage(arch)
    with pytest.raises(ValueError, match=r"a\.pth\.tar'"):
        load_official(write_official(tmp_path / "a.pth.tar", small_state(), arch), {})


def test_heads_that_are_no_number(tmp_path: Path) -> None:
    path = write_official(tmp_path / "a.pth.tar", small_state(), small_arch(nhead="two"))
    with pytest.raises(ValueError, match=r"num_heads \(arch\) is 'two', not a number"):
        UniAD.from_official(path)


def test_damaged_weights(tmp_path: Path) -> None:
    path = write_official(tmp_path / "a.pth.tar", small_state(), small_arch())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of some tensor
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pth\.tar' is damaged: the check sum"):
        load_official(path, {})
    state = small_state()
    state["module.reconstruction.input_proj.bias"][3] = float("nan")
    with pytest.raises(ValueError, match=r"damaged: values of module\.reconstruction\.input_proj\.bias are not finite"):
        load_official(write_official(path, state, small_arch()), {})


def test_half_of_the_positions(tmp_path: Path) -> None:
    state = small_state()
    del state["module.reconstruction.pos_embed.col_embed.weight"]
    with pytest.raises(ValueError, match=r"not as the authors' code writes them \(KeyError.*col_embed"):
        load_official(write_official(tmp_path / "a.pth.tar", state, small_arch()), {})
    state = small_state()
    state["module.reconstruction.input_proj.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"has no reconstruction\.input_proj\.weight, or in another shape"):
        load_official(write_official(tmp_path / "b.pth.tar", state, small_arch()), {})


def test_taps_by_strides(tmp_path: Path) -> None:
    arch = small_arch()
    arch[0]["kwargs"] = {"outstrides": [4, 8]}
    official = load_official(write_official(tmp_path / "a.pth.tar", small_state(), arch), {})
    assert official.arguments["layers"] == [1, 2]


def test_easydict_is_read_as_plain_dicts_without_the_package(tmp_path: Path) -> None:
    path = write_official(tmp_path / "a.pth.tar", {"module.x": torch.ones(1)}, ARCH)
    content = read_official(path)
    assert content.arch["reconstruction"]["kwargs"]["neighbor_mask"] == {
        "neighbor_size": [7, 7],
        "mask": [True, True, True],
    }
    assert type(content.arch["reconstruction"]["kwargs"]["neighbor_mask"]) is dict
    assert list(content.state) == ["x"]
    assert content.epoch == 7


class Foreign:
    """Creates a folder when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_classes_are_refused_and_not_executed(tmp_path: Path, legacy: bool) -> None:
    path, witness = tmp_path / "evil.pth.tar", tmp_path / "witness"
    torch.save(
        {"state_dict": {"x": torch.ones(1)}, "arch": Foreign(witness)},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(ValueError, match=r"evil\.pth\.tar' holds an object of posix\.mkdir, .*Nothing .*executed"):
        read_official(path)
    assert not witness.exists()


def test_old_file_format(tmp_path: Path) -> None:
    path = tmp_path / "old.pth.tar"
    with easydict_installed():
        torch.save({"state_dict": {"module.x": torch.ones(2)}}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_official(path).state["x"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a checkpoint"),
        ({"state_dict": {"x": 3}}, r"no state_dict that maps names to tensors; \['x'\] are none"),
        ({"state_dict": {}}, "no state_dict that maps names to tensors"),
        ({"state_dict": {"x": torch.ones(1)}, "pytorch-lightning_version": "2"}, "Lightning checkpoint already"),
        ({"state_dict": {"x": torch.ones(1)}, "arch": "resnet50"}, "not the authors' list of parts"),
        (
            {"state_dict": {"module.x": torch.ones(1)}},
            r"not a whole UniAD.*reconstruction\.input_proj\.weight.*backbone",
        ),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        load_official(tmp_path / "other.pth", {})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint '.*gone\.pth'"):
        load_official(tmp_path / "gone.pth", {})
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text\.pth' cannot be read as a checkpoint"):
        load_official(tmp_path / "text.pth", {})
    whole = write_official(tmp_path / "whole.pth.tar", small_state(), small_arch()).read_bytes()
    (tmp_path / "half.pth.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.pth\.tar' cannot be read as a checkpoint"):
        load_official(tmp_path / "half.pth.tar", {})


def test_missing_and_misshaped_tensors(tmp_path: Path) -> None:
    state = small_state()
    del state["module.reconstruction.transformer.encoder.layers.0.norm1.bias"]
    state["module.reconstruction.output_proj.bias"] = torch.zeros(3)
    state["module.reconstruction.extra"] = torch.zeros(3)
    path = write_official(tmp_path / "a.pth.tar", state, small_arch())
    with pytest.raises(ValueError, match=r"a\.pth\.tar' does not fit the model") as error:
        UniAD.from_official(path)
    for part in ("encoder.layers.0.norm1.bias", "output_projection.bias", 'Unexpected key(s) in state_dict: "extra"'):
        assert part in str(error.value)


def test_backbone_of_the_model_is_the_one_of_the_file(tmp_path: Path) -> None:
    """Maps are those of timm's model with the same weights."""
    state = small_state()
    model = UniAD.from_official(write_official(tmp_path / "a.pth.tar", state, small_arch())).eval()
    reference = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=[1, 2]).eval()
    start = "module.backbone."
    weights = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    reference.load_state_dict({key: value for key, value in weights.items() if key in reference.state_dict()})
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(model.model.backbone(images), reference(images), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_images_are_normalised_as_by_the_authors(tmp_path: Path, monkeypatch) -> None:
    """Whatever timm has for the backbone; and with a pre-processor of one's own, by that."""
    timms = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    monkeypatch.setattr("anomalib_uniad.model.components.backbone.resolve_model_data_config", lambda _: timms)
    path = write_official(tmp_path / "a.pth.tar", small_state(), small_arch())
    image, crop = torch.rand(1, 3, 64, 96), (0, 0, 64, 96)
    expected = torchvision.transforms.functional.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for arguments in ({}, {"crop": crop}, {"pre_processor": True}):
        torch.testing.assert_close(UniAD.from_official(path, **arguments).pre_processor(image), expected)
    assert UniAD.from_official(path, pre_processor=False).pre_processor is None
