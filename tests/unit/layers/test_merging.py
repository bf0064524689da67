"""Token merging against plain loops over single tokens in float64, and what must hold whatever the numbers are."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from kawara.errors import ConfigError
from kawara.layers.merging import Merging, match_tokens, merge_schedule, merge_tokens, num_merged
from kawara.models import VisionTransformer, ViTConfig, create_model

SMALL = ViTConfig(image_size=(32, 40), num_classes=5, patch_size=8, width=16, depth=4, heads=2, mlp_hidden=32)
OPTIONS = [
    {},
    {"distillation_token": True},
    {"registers": 3},
    {"class_token": False, "pool": "mean"},
    {"registers": 4, "pool": "mean", "final_norm": "pooled"},
    {"class_token": False, "pool": "map"},
    {"layer_scale": 0.3, "merge_proportional": False},
    {"merge_inflection": -1.0},
    {"merge_every": 2},
]


def shaken(**options) -> VisionTransformer:
    """A model in float64 whose parameters are all away from zero."""
    torch.manual_seed(0)
    model = VisionTransformer(dataclasses.replace(SMALL, **options)).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def loop_merge(tokens: list[list[float]], sizes: list[float], keys: list[list[float]], r: int, num_prefix: int) -> tuple[list, list, list]:
    """One image, one token after the other, as the paper tells it: new tokens, new sizes, and which old ones each is made of."""
    numbers = range(len(tokens))
    r = min(r, (len(tokens) - num_prefix) // 2)
    first, second = [i for i in numbers if i % 2 == 0], [i for i in numbers if i % 2 == 1]
    found = []
    for a in first:
        likeness = {b: -math.inf if a < num_prefix or b < num_prefix else cosine(keys[a], keys[b]) for b in second}
        best = max(likeness, key=lambda b: likeness[b])
        found.append((likeness[best], a, best))
    pairs = {a: best for _, a, best in sorted(found, key=lambda pair: -pair[0])[:r]}
    order = [*range(num_prefix), *(a for a in first if a >= num_prefix and a not in pairs), *(b for b in second if b >= num_prefix)]
    members = [[place, *(a for a in pairs if pairs[a] == place)] for place in order]
    new_sizes = [sum(sizes[i] for i in group) for group in members]
    averaged = [
        [sum(sizes[i] * tokens[i][d] for i in group) / size for d in range(len(tokens[0]))] for group, size in zip(members, new_sizes)
    ]
    return averaged, new_sizes, members


@pytest.mark.parametrize(
    ("num_tokens", "num_prefix", "r"), [(14, 1, 4), (15, 1, 7), (15, 2, 5), (16, 2, 99), (12, 0, 3), (13, 0, 6), (17, 5, 4)]
)
def test_matching_and_merging_equal_plain_loops(num_tokens: int, num_prefix: int, r: int) -> None:
    generator = torch.Generator().manual_seed(num_tokens)
    metric = torch.randn(3, num_tokens, 4, dtype=torch.float64, generator=generator)
    tokens = torch.randn(3, num_tokens, 6, dtype=torch.float64, generator=generator)
    size = torch.randint(1, 9, (3, num_tokens, 1), generator=generator).double()
    matching = match_tokens(metric, num_merged(r, num_tokens, num_prefix), num_prefix)
    merged, new_size = merge_tokens(tokens, size, matching)
    for b in range(3):
        expected, sizes, members = loop_merge(tokens[b].tolist(), size[b, :, 0].tolist(), metric[b].tolist(), r, num_prefix)
        torch.testing.assert_close(merged[b], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13)
        assert new_size[b, :, 0].tolist() == sizes
        assert matching.kept[b].tolist() == [group[0] for group in members]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_model_that_merges_equals_plain_loops(options: dict) -> None:
    """Stem, branches and heads are the model's own; who attends to whom, who merges and how it is pooled is told token by token."""
    model = shaken(merge=3, **options)
    config = model.config
    image = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    with torch.no_grad():
        answer = model(image)
        begun = model.embed(model.patch_embed(image), (4, 5))
        for b in range(2):
            tokens, sizes = begun[b], [1.0] * begun.shape[1]
            for block, r in zip(model.blocks, config.merge_schedule):
                query, key, value = (each[0] for each in block.attn.query_key_value(block.norm1(tokens[None])))
                logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
                if config.merge_proportional:
                    logits = logits + torch.tensor(sizes, dtype=torch.float64).log()
                heads = (logits.softmax(-1) @ value).transpose(0, 1).flatten(1)
                tokens = tokens + block.ls1(block.attn.proj(heads))
                if r:
                    averaged, sizes, _ = loop_merge(tokens.tolist(), sizes, key.mean(0).tolist(), r, config.num_prefix)
                    tokens = torch.tensor(averaged, dtype=torch.float64)
                tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
            tokens = model.norm(tokens) if config.final_norm == "tokens" else tokens
            # A patch token that stands for s patches, s times over: then nobody has to know of sizes.
            patches = torch.stack([token for token, size in zip(tokens, sizes) for _ in range(int(size))])[config.num_prefix :]
            if config.pool == "map":
                pooled = model.attn_pool(patches[None])[0]
            else:
                pooled = tokens[0] if config.pool == "class" else patches.mean(dim=0)
            logits = model.head(pooled if config.final_norm == "tokens" else model.norm(pooled))
            if config.distillation_token:
                logits = (logits + model.head_dist(tokens[1])) / 2
            torch.testing.assert_close(answer[b], logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("r", "expected"), [(8, 101), (13, 41), (16, 11)])
def test_token_counts_of_the_papers_models(r: int, expected: int) -> None:
    merging, counts = Merging(merge_schedule(r, 12), 1), []
    tokens = torch.randn(1, 197, 4)
    for _ in range(12):
        merging.key = tokens[:, None]
        tokens = merging.merge(tokens)
        counts.append(tokens.shape[1])
    assert counts[-1] == expected
    assert merging.size.sum() == 197
    if r == 16:
        assert counts[-2] == 21


def test_schedules() -> None:
    assert merge_schedule(8, 12) == (8,) * 12
    assert merge_schedule(8, 5, -1.0) == (16, 12, 8, 4, 0)
    assert merge_schedule(8, 5, 1.0) == (0, 4, 8, 12, 16)
    assert merge_schedule(8, 12, -0.5) == (12, 11, 10, 9, 9, 8, 7, 6, 6, 5, 4, 4)
    assert merge_schedule(3, 1) == (3,)
    assert merge_schedule(8, 5, every=2) == (0, 16, 0, 16, 0)
    assert merge_schedule(8, 6, every=3) == (0, 0, 24, 0, 0, 24)
    assert merge_schedule(8, 4, -1.0, 2) == (0, 16 + 10, 0, 5 + 0)


def test_without_merging_not_a_bit_changes() -> None:
    image = torch.randn(2, 3, 32, 40)
    plain, model = shaken().float(), shaken(merge=5).float()
    assert not torch.equal(model(image), plain(image))
    model.set_merging(0)
    assert model.config == plain.config
    assert torch.equal(model(image), plain(image))
    model.set_merging(1, -1.0)  # 2, 1, 0, 0
    model.config = dataclasses.replace(model.config, merge_inflection=0.0, merge=99)
    assert torch.isfinite(model(image)).all()


@pytest.mark.parametrize("options", [{}, {"class_token": False, "pool": "mean"}, {"class_token": False, "pool": "map"}], ids=str)
def test_equal_tokens_merge_into_the_same_answer(options: dict) -> None:
    model = shaken(position="none", **options)
    image = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(-1, -1, 32, 40)
    expected = model(image)
    model.set_merging(4)
    torch.testing.assert_close(model(image), expected, rtol=1e-12, atol=1e-12)
    if not options:  # the class token is not like the patches: it must not count for more because these became fewer
        model.set_merging(4, proportional=False)
        assert (model(image) - expected).abs().max() > 1e-6


def test_features_give_each_patch_the_token_it_went_into() -> None:
    model = shaken(merge=3)
    image = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    features, plain = model.features(image), shaken().features(image)
    assert features.tokens.shape == plain.tokens.shape
    assert features.feature_map.shape == (2, 16, 4, 5)
    assert torch.equal(features.pooled, features.tokens[:, 0])
    assert all(len(torch.unique(tokens, dim=0)) == 21 - 4 * 3 for tokens in features.tokens)


def test_a_merged_model_learns() -> None:
    model = shaken(merge=3, class_token=False, pool="mean").train()
    loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 40, dtype=torch.float64)), torch.tensor([0, 3]))
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_bfloat16_and_autocast_run_through() -> None:
    image = torch.randn(2, 3, 32, 40)
    model = shaken(merge=3).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(image)).all()
    assert torch.isfinite(model.bfloat16()(image.bfloat16())).all()


def test_stems_and_hybrids_merge_and_cnns_say_no() -> None:
    image = torch.randn(1, 3, 32, 32)
    assert create_model("vit_femto_conv_4", merge=4).eval()(image).shape == (1, 1000)
    hybrid = dataclasses.replace(SMALL, stem="resnet", resnet_blocks=(1, 1), resnet_width=32, image_size=(32, 32), merge=1)
    assert VisionTransformer(hybrid).eval()(image).shape == (1, 5)
    with pytest.raises(ConfigError, match="Only the tokens of a ViT"):
        create_model("resnet_femto").set_merging(8)
    create_model("resnet_femto").set_merging(0)


def test_options_that_do_not_fit_say_so() -> None:
    for options, message in (
        ({"merge": -1}, "cannot be negative"),
        ({"merge": 2, "merge_inflection": 2.0}, "between -1 and 1"),
        ({"merge_inflection": 0.5}, "acts only with merge"),
        ({"merge_proportional": False}, "acts only with merge"),
        ({"merge_every": 2}, "acts only with merge"),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(SMALL, **options)
