# SPDX-License-Identifier: Apache-2.0
"""What is compared with UniAD's transformer, and other decoders."""

from pathlib import Path

import pytest
import torch
from torch import nn

from anomalib_uniad import UniAD, UniADModel
from anomalib_uniad.errors import InputError
from anomalib_uniad.model.components import LayerwiseQueryDecoder

SMALL = {
    "backbone": "resnet18",
    "pre_trained": False,
    "image_size": 128,
    "hidden_dim": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "feedforward_dim": 64,
    "neighbor_size": 3,
    "seed": 0,
}
OTHERS = ("transformer", "cnn", "mlp")


def moved_by(model: UniADModel, token: int) -> set[int]:
    """Tokens whose reconstruction depends on a token."""
    tokens = torch.randn(1, 64, sum(model.backbone.channels), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, token] += 1
    with torch.no_grad():
        difference = model.transformer(changed) - model.transformer(tokens)
    return set(difference[0].abs().amax(dim=1).gt(1e-6).nonzero().flatten().tolist())


@pytest.mark.parametrize("reconstruction", OTHERS)
def test_others_have_as_many_weights_and_all_learn(reconstruction: str) -> None:
    own, other = (UniAD(**SMALL, reconstruction=name).model for name in ("uniad", reconstruction))
    counts = [sum(weight.numel() for weight in model.transformer.inner_matrices()) for model in (own, other)]
    assert counts[1] == pytest.approx(counts[0], rel=0.04)
    reconstruction_of, target = other.train()(torch.rand(2, 3, 128, 128))
    (reconstruction_of - target).square().mean().backward()
    unused = [name for name, weight in other.transformer.named_parameters() if not weight.grad.abs().sum() > 0]
    assert not unused


def test_what_a_token_is_reconstructed_from() -> None:
    models = {name: UniAD(**SMALL, reconstruction=name).model.eval() for name in ("uniad", *OTHERS)}
    assert moved_by(models["mlp"], 27) == {27}
    one_layer = UniAD(**{**SMALL, "num_decoder_layers": 1}, reconstruction="cnn").model.eval()
    around = {8 * row + column for row in range(8) for column in range(8) if max(abs(row - 3), abs(column - 3)) <= 4}
    assert moved_by(one_layer, 27) == around  # two layers of two convolutions
    assert moved_by(models["transformer"], 27) == set(range(64))
    hidden = {8 * row + column for row in (2, 3, 4) for column in (2, 3, 4)}
    masked = LayerwiseQueryDecoder(1, 32, 4, 64, 0.0, (8, 8), ((3, 3), (3, 3)), "layerwise").eval()
    memory, position = torch.randn(2, 1, 64, 32), torch.randn(64, 32)
    memory[1] = memory[0]
    memory[1, 0, 27] += 1
    with torch.no_grad():
        first, second = (masked(one, position) for one in memory)
    seen = set((first - second)[0].abs().amax(dim=1).gt(1e-6).nonzero().flatten().tolist())
    assert seen == set(range(64)) - hidden


def test_without_learned_queries_it_is_the_decoder_of_torch() -> None:
    """Self-attention, attention to the encoder, feed-forward, as in "Attention is all you need"."""
    torch.manual_seed(0)
    ours = LayerwiseQueryDecoder(3, 32, 4, 64, 0.0, (4, 4), (None, None), "none", ("previous", "encoder"))
    layer = nn.TransformerDecoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    theirs = nn.TransformerDecoder(layer, 3, norm=nn.LayerNorm(32))
    for own, other in zip(ours.layers, theirs.layers, strict=True):
        other.self_attn.load_state_dict(own.encoder_attention.state_dict())
        other.multihead_attn.load_state_dict(own.previous_attention.state_dict())
        other.linear1.load_state_dict(own.feedforward[0].state_dict())
        other.linear2.load_state_dict(own.feedforward[3].state_dict())
    memory = torch.randn(2, 16, 32)
    torch.testing.assert_close(ours(memory, torch.zeros(16, 32)), theirs(memory, memory))


@pytest.mark.parametrize(("query", "learned"), [("layerwise", 3), ("first", 1), ("none", 0)])
def test_queries(query: str, learned: int) -> None:
    made = LayerwiseQueryDecoder(3, 32, 4, 64, 0.0, (4, 4), (None, None), query)
    assert [layer.query is not None for layer in made.layers] == [True] * learned + [False] * (3 - learned)
    alike = torch.ones(1, 16, 32)  # without positions, only learned queries tell tokens apart
    told_apart = made(alike, torch.zeros(16, 32)).std(dim=1).max() > 1e-3
    assert told_apart == (learned > 0)


@pytest.mark.parametrize(
    ("attends_to", "of_the_last"), [(("encoder", "encoder"), False), (("previous", "encoder"), True)]
)
def test_what_the_attentions_attend_to(attends_to: tuple[str, str], of_the_last: bool) -> None:
    """Layers of which none attends to the previous one, and that have queries of their own, do not depend on it."""
    made = LayerwiseQueryDecoder(2, 32, 4, 64, 0.0, (4, 4), (None, None), "layerwise", attends_to)
    made(torch.randn(1, 16, 32), torch.randn(16, 32)).square().sum().backward()
    assert (made.layers[0].query.grad is not None) == of_the_last


def test_wrong_choices() -> None:
    for arguments, message in (
        ({"reconstruction": "vae"}, "reconstruction must be one of 'uniad', 'transformer', 'cnn', 'mlp', got 'vae'"),
        ({"decoder_query": "last"}, "decoder_query must be one of 'layerwise', 'first', 'none', got 'last'"),
        (
            {"decoder_attention": ["encoder"]},
            r"decoder_attention must be two of encoder and previous, got \('encoder',\)",
        ),
        ({"reconstruction": "mlp", "num_decoder_layers": 0}, "num_decoder_layers must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            UniAD(**{**SMALL, **arguments})


@pytest.mark.parametrize("reconstruction", OTHERS)
def test_exported_graphs(reconstruction: str) -> None:
    model = UniADModel(
        **{name: value for name, value in SMALL.items() if name not in {"seed", "image_size", "neighbor_size"}},
        image_size=(64, 64),
        neighbor_size=(3, 3),
        reconstruction=reconstruction,
    ).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        made = torch.export.export(model, (images,), strict=False).module()(images)
        torch.testing.assert_close(made.anomaly_map, model(images).anomaly_map, rtol=1e-4, atol=1e-5)


def test_checkpoints_say_what_they_are(tmp_path: Path) -> None:
    former = UniAD(**SMALL)
    names = ("reconstruction", "decoder_query", "decoder_attention")
    arguments = {name: value for name, value in former.hparams.items() if name not in names}
    content = {"hyper_parameters": arguments, "state_dict": former.state_dict(), "pytorch-lightning_version": "2.6.0"}
    torch.save(content, tmp_path / "model.ckpt")
    loaded = UniAD.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.model.transformer.decoder.layers[1].query.equal(former.model.transformer.decoder.layers[1].query)
    for name, value in (("reconstruction", "mlp"), ("decoder_query", "first")):
        with pytest.raises(InputError, match=rf"{name}: \w+ in the checkpoint, {value} in the model"):
            UniAD(**SMALL, **{name: value}, initial_checkpoint=tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=r"decoder_attention: \('encoder', 'previous'\) in the checkpoint"):
        UniAD(**SMALL, decoder_attention=["previous", "encoder"], initial_checkpoint=tmp_path / "model.ckpt")
