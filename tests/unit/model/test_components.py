# SPDX-License-Identifier: Apache-2.0
"""Each component against a slow, obvious version of itself."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anomalib_uniad.model.components import (
    FeatureJitter,
    LayerwiseQueryDecoder,
    LearnedPosition,
    MultiScaleNeck,
    NeighborMaskedAttention,
    NeighborMaskedEncoder,
    SinePosition,
    neighbor_mask,
)
from anomalib_uniad.model.components.attention import masked_attention
from anomalib_uniad.model.components.dropout import Dropout, keep_mask


@pytest.mark.parametrize(
    ("grid", "window"),
    [((5, 6), (3, 3)), ((4, 7), (3, 5)), ((6, 6), (4, 2)), ((14, 14), (7, 7)), ((2, 3), (1, 1))],
)
def test_neighbor_mask_equals_brute_force(grid: tuple[int, int], window: tuple[int, int]) -> None:
    height, width = grid
    mask = neighbor_mask(grid, window)
    for query in range(height * width):
        for key in range(height * width):
            dy = abs(query // width - key // width)
            dx = abs(query % width - key % width)
            hidden = dy <= window[0] // 2 and dx <= window[1] // 2
            assert mask[query, key] == (not hidden)


@pytest.mark.parametrize(("grid", "window"), [((3, 3), (3, 3)), ((4, 4), (7, 7)), ((1, 3), (1, 3)), ((3, 9), (3, 9))])
def test_window_over_the_whole_grid_is_refused(grid: tuple[int, int], window: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"neighbor_size \(.*hides the whole"):
        neighbor_mask(grid, window)


def test_window_must_be_positive() -> None:
    with pytest.raises(ValueError, match="neighbor_size must be positive"):
        neighbor_mask((5, 5), (0, 3))


@pytest.mark.parametrize("window", [None, (3, 3)])
@pytest.mark.parametrize("query_from", ["memory", "others", "one for all"])
def test_attention_equals_torch(window: tuple[int, int] | None, query_from: str) -> None:
    attention = NeighborMaskedAttention(hidden_dim=16, num_heads=4, grid_size=(4, 5), neighbor_size=window).eval()
    nn.init.normal_(attention.in_proj_bias)
    reference = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    reference.load_state_dict(attention.state_dict())
    memory, position = torch.randn(2, 20, 16), torch.randn(20, 16)
    query = {"memory": memory, "others": torch.randn(2, 20, 16), "one for all": torch.randn(1, 20, 16)}[query_from]
    hidden = None if window is None else ~neighbor_mask((4, 5), window)
    q = (query + position).expand_as(memory)
    expected, _ = reference(q, memory + position, memory, attn_mask=hidden)
    torch.testing.assert_close(attention(query, memory, position), expected)


@pytest.mark.parametrize("visible", [None, neighbor_mask((4, 5), (3, 3))])
def test_attention_by_hand_equals_torch_up_to_the_mask(visible: torch.Tensor | None) -> None:
    query, key, value = torch.randn(3, 2, 4, 20, 8)
    weights = (query @ key.transpose(-2, -1) / 8**0.5).masked_fill(
        torch.zeros(20, 20, dtype=torch.bool) if visible is None else ~visible, -math.inf
    )
    weights = weights.softmax(dim=-1)
    torch.manual_seed(3)
    expected = (weights * keep_mask(weights, 0.25) / 0.75) @ value
    torch.manual_seed(3)
    actual = masked_attention(query.requires_grad_(), key, value, visible, dropout=0.25)
    assert not expected.isclose(weights @ value).all()
    torch.testing.assert_close(actual, expected)


def test_attention_in_reduced_precision_has_the_gradients_of_full() -> None:
    inputs = torch.randn(3, 2, 4, 20, 8)
    visible = neighbor_mask((4, 5), (3, 3))
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [x.to(dtype).requires_grad_() for x in inputs]
        masked_attention(*tensors, visible).float().square().sum().backward()
        gradients.append(torch.stack([x.grad.float() for x in tensors]))
    assert (gradients[0] - gradients[1]).abs().max() < 0.03 * gradients[0].abs().max()


def test_attention_keeps_the_precision_of_autocast() -> None:
    attention = NeighborMaskedAttention(8, 2, (5, 5), (3, 3))
    tokens = torch.randn(1, 25, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention._offset(torch.randn(25, 8)).shape == (25, 24)
        assert attention(tokens, tokens, torch.randn(25, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.93])
def test_keep_mask_is_random_and_independent(probability: float, dtype: torch.dtype) -> None:
    mask = keep_mask(torch.empty(999, 1001, dtype=dtype), probability)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0, 1}
    kept, count = mask.double().flatten(), mask.numel()
    error = 5 * (probability * (1 - probability) / count) ** 0.5  # five standard deviations
    assert abs(kept.mean() - (1 - probability)) < error + 1 / 65536
    for lag in (1, 2, 3, 4, 1001):  # four neighbors share one draw
        both = (kept[:-lag] * kept[lag:]).mean()
        assert abs(both - (1 - probability) ** 2) < 3 * error


@pytest.mark.parametrize("probability", [0.99998, 0.999999])
def test_keep_mask_near_one(probability: float) -> None:
    assert keep_mask(torch.empty(100, 100), probability).mean() < 0.01


def test_dropout_scales_what_it_keeps() -> None:
    x = torch.randn(200, 300, requires_grad=True)
    dropout = Dropout(0.25)
    dropped = dropout(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.75)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, kept / 0.75)
    assert dropout.eval()(x) is x
    assert Dropout(1.0)(x).eq(0).all()
    assert Dropout(0.0)(x) is x


def test_a_token_does_not_see_its_neighborhood() -> None:
    attention = NeighborMaskedAttention(hidden_dim=8, num_heads=2, grid_size=(6, 6), neighbor_size=(3, 3)).eval()
    tokens = torch.randn(1, 36, 8)
    changed = tokens.clone()
    changed[0, 14] += 10  # row 2, column 2
    query, position = torch.randn(1, 36, 8), torch.randn(36, 8)
    difference = (attention(query, changed, position) - attention(query, tokens, position)).abs().amax(dim=(0, 2))
    near = [6 * y + x for y in (1, 2, 3) for x in (1, 2, 3)]
    assert (difference[near] == 0).all()
    far = [token for token in range(36) if token not in near]
    assert (difference[far] > 0).all()


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match=r"hidden_dim \(10\) must be a multiple of num_heads \(4\)"):
        NeighborMaskedAttention(10, 4, (5, 5))


def test_attention_dropout_only_in_training() -> None:
    attention = NeighborMaskedAttention(8, 2, (5, 5), (3, 3), dropout=0.5)
    tokens = torch.randn(1, 25, 8)
    inputs = (tokens, tokens, torch.randn(25, 8))
    assert not attention.train()(*inputs).equal(attention(*inputs))
    assert attention.eval()(*inputs).equal(attention(*inputs))


def test_learned_position() -> None:
    position = LearnedPosition((3, 4), 8)
    embedding = position().view(3, 4, 8)
    for y in range(3):
        for x in range(4):
            assert embedding[y, x].equal(torch.cat([position.col_embed[x], position.row_embed[y]]))
    assert 0 <= position.row_embed.min() < position.row_embed.max() <= 1


def test_sine_position() -> None:
    height, width, features = 3, 5, 4
    embedding = SinePosition((height, width), 2 * features)().view(height, width, 2 * features)
    for y in range(height):
        for x in range(width):
            expected = []
            for index, length in ((y, height), (x, width)):
                angle = (index + 1) / (length + 1e-6) * 2 * math.pi
                for i in range(features):
                    phase = angle / 10000 ** (2 * (i // 2) / features)
                    expected.append(math.cos(phase) if i % 2 else math.sin(phase))
            torch.testing.assert_close(embedding[y, x], torch.tensor(expected))


@pytest.mark.parametrize(("kind", "dim", "divisor"), [(LearnedPosition, 7, 2), (SinePosition, 6, 4)])
def test_position_refuses_odd_channels(kind: type, dim: int, divisor: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of {divisor}"):
        kind((4, 4), dim)


def test_jitter_formula() -> None:
    tokens = torch.randn(2, 5, 12) * torch.tensor([1.0, 5.0]).view(2, 1, 1)
    jitter = FeatureJitter(scale=20.0, probability=1.0)
    torch.manual_seed(0)
    result = jitter(tokens)
    torch.manual_seed(0)
    noise = torch.randn_like(tokens)
    for batch in range(2):
        for token in range(5):
            length = tokens[batch, token].square().sum().sqrt()
            expected = tokens[batch, token] + noise[batch, token] * length / 12 * 20.0
            torch.testing.assert_close(result[batch, token], expected)


def test_jitter_probability_counts_batches() -> None:
    torch.manual_seed(0)
    jitter = FeatureJitter(probability=0.3)
    tokens = torch.randn(2, 3, 4)
    changed = [not jitter(tokens).equal(tokens) for _ in range(500)]
    assert 0.24 < sum(changed) / 500 < 0.36


def test_jitter_is_off_outside_training() -> None:
    tokens = torch.randn(2, 3, 4)
    assert FeatureJitter().eval()(tokens) is tokens
    assert FeatureJitter(probability=0.0)(tokens) is tokens
    assert FeatureJitter(scale=0.0)(tokens) is tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1}, "jitter_scale"),
        ({"probability": 1.5}, "jitter_probability"),
        ({"probability": -0.1}, "0, 1"),
    ],
)
def test_jitter_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureJitter(**arguments)


def test_neck_equals_interpolation_of_each_map() -> None:
    maps = [torch.randn(2, 3, 16, 24), torch.randn(2, 5, 4, 6), torch.randn(2, 2, 2, 3)]
    result = MultiScaleNeck((4, 6))(maps)
    assert result.shape == (2, 10, 4, 6)
    assert result[:, 3:8].equal(maps[1])
    # align_corners: the corners of a map are the corners of the result, shrinking or growing
    for column, source in ((slice(0, 3), maps[0]), (slice(8, 10), maps[2])):
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            torch.testing.assert_close(result[(slice(None), column, *corner)], source[(..., *corner)])
    # no antialiasing: at the place y = 1 of 4 the input's place is 1 * 15 / 3 = 5 of 16
    torch.testing.assert_close(result[:, :3, 1, 0], maps[0][:, :, 5, 0])


def test_neck_averages_what_a_token_covers() -> None:
    maps = [torch.randn(2, 3, 16, 24), torch.randn(2, 5, 9, 13), torch.randn(2, 2, 2, 3)]
    result = MultiScaleNeck((4, 6), "area")(maps)
    torch.testing.assert_close(result[:, :3], maps[0].unflatten(3, (6, 4)).unflatten(2, (4, 4)).mean((3, 5)))
    torch.testing.assert_close(result[:, 3:8, 1, 2], maps[1][:, :, 2:5, 4:7].mean((2, 3)))  # 9/4 to 18/4, 26/6 to 39/6
    assert result[:, 8:].equal(MultiScaleNeck((4, 6))(maps)[:, 8:])  # grows
    with pytest.raises(ValueError, match="feature_resize"):
        MultiScaleNeck((4, 6), "nearest")  # type: ignore[arg-type]


def test_encoder_layer_is_post_norm() -> None:
    encoder = NeighborMaskedEncoder(1, 8, 2, 16, 0.0, (4, 4), (3, 3))
    tokens, position = torch.randn(2, 16, 8), torch.randn(16, 8)
    layer = encoder.layers[0]
    attended = layer.self_attention(tokens, tokens, position)
    x = F.layer_norm(tokens + attended, (8,))
    hidden = F.relu(layer.feedforward[0](x))
    expected = F.layer_norm(x + layer.feedforward[3](hidden), (8,))
    torch.testing.assert_close(encoder(tokens, position), expected)


def test_decoder_layers_have_their_own_queries_and_start_from_memory() -> None:
    decoder = LayerwiseQueryDecoder(2, 8, 2, 16, 0.0, (4, 4), ((3, 3), None))
    memory, position = torch.randn(2, 16, 8), torch.randn(16, 8)
    first, second = decoder.layers
    assert not first.query.equal(second.query)
    assert first.previous_attention.visible is None
    previous = memory
    for layer in (first, second):
        query = layer.query[None].repeat(2, 1, 1)
        x = F.layer_norm(query + layer.encoder_attention(query, memory, position), (8,))
        x = F.layer_norm(x + layer.previous_attention(x, previous, position), (8,))
        previous = F.layer_norm(x + layer.feedforward(x), (8,))
    torch.testing.assert_close(decoder(memory, position), F.layer_norm(previous, (8,)))
