"""Skip ratios and removals against the forward pass written out."""

import numpy as np
import pytest
import torch

from kawara.analysis.similarity import unbiased_cka
from kawara.analysis.skip import skip_ratios, skip_removal, without_skip
from kawara.errors import DataError
from kawara.models import create_model


def written_out(vit, image, removed=None):
    """The forward pass of a ViT block by block; returns logits, pooled features and (stream, branch) of every skip."""
    grid = vit.patch_embed.grid((image.shape[-2], image.shape[-1]))
    tokens = vit.embed(vit.patch_embed(image), grid)
    pairs = []
    for index, block in enumerate(vit.blocks):
        for number, (norm, branch) in enumerate(((block.norm1, block.attn), (block.norm2, block.mlp)), start=1):
            added = branch(norm(tokens))
            pairs.append((tokens, added))
            tokens = added if removed == f"blocks.{index}.skip{number}" else tokens + added
    pooled = vit.norm(tokens)[:, 0]
    return vit.head(pooled), pooled, pairs


@torch.no_grad()
def test_ratios_are_means_over_the_images(vit, batches):
    vit.eval()
    found = skip_ratios(vit, batches)
    pairs = written_out(vit.double(), torch.cat(batches).double())[2]
    assert (found.num_images, found.num_prefix, len(found.places)) == (17, 1, 6)
    for ratio, (stream, branch) in zip(found.tokens, pairs):
        stream, branch = stream.numpy(), branch.numpy()
        expected = [np.mean([np.sqrt((stream[b, n] ** 2).sum()) / np.sqrt((branch[b, n] ** 2).sum()) for b in range(17)]) for n in range(7)]
        np.testing.assert_allclose(ratio, expected, rtol=1e-4)
    np.testing.assert_allclose(found.prefix[:, 0], [ratio[0] for ratio in found.tokens])
    np.testing.assert_allclose(found.patches, [ratio[1:].mean() for ratio in found.tokens])


def test_ratios_of_a_cnn_have_the_cells_of_each_stage(cnn, batches):
    found = skip_ratios(cnn, batches)
    assert [len(ratio) for ratio in found.tokens] == [96, 96, 24, 24]
    assert found.prefix.shape == (4, 0)
    assert np.isfinite(found.patches).all()


def test_a_silent_branch_gives_an_infinite_ratio():
    model = create_model("vit_femto_4", num_classes=2, image_size=8)  # its branches start at zero
    assert np.isinf(np.concatenate(skip_ratios(model, [torch.randn(2, 3, 8, 8)]).tokens)).all()


@torch.no_grad()
def test_removal_against_the_forward_pass_without_that_skip(vit, batches):
    vit.eval()
    kept = batches[:1]
    image = kept[0]
    labels = torch.arange(9) % 5
    found = skip_removal(vit, kept, labels)
    whole, pooled, _ = written_out(vit, image)
    assert found.accuracy_intact == pytest.approx(float((whole.argmax(1) == labels).double().mean()))
    for index, place in enumerate(found.places):
        logits, features, _ = written_out(vit, image, removed=place)
        assert found.accuracy[index] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
        assert found.agreement[index] == pytest.approx(float((logits.argmax(1) == whole.argmax(1)).double().mean()))
        assert found.cka[index] == pytest.approx(unbiased_cka(pooled.double(), features.double()), abs=1e-4)
    assert len(set(found.cka.round(6))) > 3


def test_removal_without_labels_and_of_chosen_places(vit, batches):
    found = skip_removal(vit, batches, places=["blocks.1.skip2"])
    assert found.accuracy is None
    assert found.accuracy_intact is None
    assert (found.places, found.num_images, found.agreement.shape) == (("blocks.1.skip2",), 17, (1,))
    with pytest.raises(DataError, match="one label"):
        skip_removal(vit, batches, torch.zeros(16))


def test_removed_skips_come_back(vit):
    image = torch.randn(2, 3, 12, 8)
    before = vit(image)
    with without_skip(vit, "blocks.0.skip1", "blocks.2.skip2"):
        assert not torch.allclose(vit(image), before)
    assert torch.equal(vit(image), before)
