"""Attention pooling against big_vision's equations, written with einsum on kernels that keep the heads as an axis."""

import math

import torch

from kawara.layers.pooling import AttentionPooling


def test_pooling_is_attention_of_one_query_and_an_mlp_beside() -> None:
    torch.manual_seed(0)
    width, heads, hidden = 12, 3, 20
    layer = AttentionPooling(width, heads, hidden, activation="gelu_tanh").double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = torch.randn(2, 5, width, dtype=torch.float64)

    def kernel(weight: torch.Tensor) -> torch.Tensor:  # (D, M, E), as Flax has it
        return weight.T.reshape(width, heads, width // heads)

    key_weight, value_weight = layer.attn.key_value.weight.chunk(2)
    key_bias, value_bias = (bias.reshape(heads, -1) for bias in layer.attn.key_value.bias.chunk(2))
    query = torch.einsum("d,dme->me", layer.latent[0, 0], kernel(layer.attn.query.weight)) + layer.attn.query.bias.reshape(heads, -1)
    key = torch.einsum("bnd,dme->bnme", tokens, kernel(key_weight)) + key_bias
    value = torch.einsum("bnd,dme->bnme", tokens, kernel(value_weight)) + value_bias
    weights = torch.einsum("me,bnme->bmn", query, key).div(math.sqrt(width // heads)).softmax(-1)
    answer = torch.einsum("bmn,bnme->bme", weights, value)
    answer = torch.einsum("bme,med->bd", answer, layer.attn.proj.weight.T.reshape(heads, -1, width)) + layer.attn.proj.bias
    normed = (answer - answer.mean(-1, keepdim=True)) / (answer.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    hidden_values = (normed * layer.norm.weight + layer.norm.bias) @ layer.mlp.fc1.weight.T + layer.mlp.fc1.bias
    gelu = 0.5 * hidden_values * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden_values + 0.044715 * hidden_values**3)))
    expected = answer + gelu @ layer.mlp.fc2.weight.T + layer.mlp.fc2.bias
    torch.testing.assert_close(layer(tokens), expected, rtol=1e-10, atol=1e-10)
