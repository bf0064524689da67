"""Attention against plain loops in float64, and its two paths against each other."""

import math

import pytest
import torch

from kawara.errors import ConfigError
from kawara.layers.attention import CrossAttention, SelfAttention, attention_weights, scaled_dot_product_attention


def loop_attention(query: list, key: list, value: list) -> tuple[list, list]:
    """One head, nothing but Python floats: rows of A, rows of A V."""
    weights, outputs = [], []
    for q in query:
        scores = [sum(a * b for a, b in zip(q, k)) / math.sqrt(len(q)) for k in key]
        exponentials = [math.exp(score - max(scores)) for score in scores]
        row = [e / sum(exponentials) for e in exponentials]
        weights.append(row)
        outputs.append([sum(weight * v[i] for weight, v in zip(row, value)) for i in range(len(value[0]))])
    return weights, outputs


@pytest.mark.parametrize("fused", [True, False])
def test_attention_equals_plain_loops(fused: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator)
    key = torch.randn(2, 3, 7, 4, dtype=torch.float64, generator=generator)
    value = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=generator)
    weights = attention_weights(query, key)
    output = scaled_dot_product_attention(query, key, value, fused=fused)
    for b in range(2):
        for m in range(3):
            expected_weights, expected = loop_attention(query[b, m].tolist(), key[b, m].tolist(), value[b, m].tolist())
            torch.testing.assert_close(weights[b, m], torch.tensor(expected_weights, dtype=torch.float64), rtol=0, atol=1e-14)
            torch.testing.assert_close(output[b, m], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


def test_rows_sum_to_one_and_hidden_keys_get_nothing() -> None:
    query, key = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 6, 8)
    bias = torch.zeros(4, 6)
    bias[:, 3:] = -math.inf
    weights = attention_weights(query, key, bias)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 4))
    assert weights[..., 3:].abs().max() == 0.0
    value = torch.randn(1, 2, 6, 8)
    fused = scaled_dot_product_attention(query, key, value, bias=bias)
    torch.testing.assert_close(fused, scaled_dot_product_attention(query, key, value, bias=bias, fused=False))


def test_shape_errors_print_expected_and_received() -> None:
    with pytest.raises(ValueError, match=r"expected: query \(\.\.\., N, E\).*\n?.*received: query \(1, 2, 4, 8\), key \(1, 2, 4, 9\)"):
        attention_weights(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 9))
    with pytest.raises(ValueError, match=r"received: .*value \(1, 2, 5, 8\)"):
        scaled_dot_product_attention(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 5, 8))


def test_self_attention_gives_equal_numbers_and_gradients_on_both_paths() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(24, 3)
    tokens = torch.randn(2, 9, 24)
    outputs, gradients = [], []
    for fused in (True, False):
        attention.fused = fused
        attention.zero_grad()
        output = attention(tokens)
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append(attention.qkv.weight.grad)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-5)


def test_qkv_rows_are_q_then_k_then_v_and_inside_each_head_after_head() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(12, 3)
    tokens = torch.randn(2, 5, 12)
    query, key, value = attention.query_key_value(tokens)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    for part, got in enumerate((query, key, value)):
        for head in range(3):
            rows = slice(part * 12 + head * 4, part * 12 + head * 4 + 4)
            torch.testing.assert_close(got[:, head], tokens @ weight[rows].T + bias[rows])


def test_forward_is_recomputed_from_query_key_value() -> None:
    attention = SelfAttention(12, 3)
    tokens = torch.randn(2, 5, 12)
    query, key, value = attention.query_key_value(tokens)
    mixed = attention_weights(query, key) @ value
    torch.testing.assert_close(attention.proj(mixed.transpose(1, 2).reshape(2, 5, 12)), attention(tokens), rtol=0, atol=1e-6)


def test_cross_attention_reads_its_memory_only_through_keys_and_values() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(12, 3, memory_width=7)
    tokens, memory = torch.randn(2, 5, 12), torch.randn(2, 8, 7)
    output = attention(tokens, memory)
    assert output.shape == (2, 5, 12)
    order = torch.randperm(8)
    torch.testing.assert_close(attention(tokens, memory[:, order]), output, rtol=0, atol=1e-6)
    attention.fused = False
    torch.testing.assert_close(attention(tokens, memory), output, rtol=0, atol=1e-6)


def test_cross_attention_with_its_own_tokens_is_self_attention() -> None:
    attention, cross = SelfAttention(12, 3), CrossAttention(12, 3)
    with torch.no_grad():
        cross.query.weight.copy_(attention.qkv.weight[:12])
        cross.query.bias.copy_(attention.qkv.bias[:12])
        cross.key_value.weight.copy_(attention.qkv.weight[12:])
        cross.key_value.bias.copy_(attention.qkv.bias[12:])
    cross.proj.load_state_dict(attention.proj.state_dict())
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(cross(tokens, tokens), attention(tokens), rtol=0, atol=1e-6)


def test_dropout_acts_in_training_only() -> None:
    attention = SelfAttention(12, 3, attention_dropout=0.5)
    tokens = torch.randn(2, 5, 12)
    assert not torch.equal(attention(tokens), attention(tokens))
    attention.eval()
    assert torch.equal(attention(tokens), attention(tokens))


def test_width_must_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(ConfigError, match="heads"):
        SelfAttention(10, 3)
