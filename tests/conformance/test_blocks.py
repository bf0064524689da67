"""The blocks that analysis finds by looking are those that the model counts by itself."""

import pytest
import torch

from kawara.analysis.places import block_places, representation_layers, skip_places
from kawara.models import create_model, model_names


# One row in five: those of a family differ in numbers, not in their modules.
@pytest.mark.parametrize("name", model_names()[::5])
def test_blocks_and_skips_are_found(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    blocks = block_places(model)
    stem = [block for block in blocks if block.startswith("patch_embed.")]  # the units of a hybrid's ResNet
    assert len(stem) == (sum(model.config.resnet_blocks) if getattr(model.config, "stem", "") == "resnet" else 0)
    blocks = blocks[len(stem) :]
    assert len(blocks) == model.num_layers - 1
    for index, block in enumerate(blocks):
        parameters = [f"{block}.{parameter}" for parameter, _ in model.get_submodule(block).named_parameters()]
        assert {model.layer_index(parameter) for parameter in parameters} == {index + 1}
    assert {skip.rpartition(".")[0] for skip in skip_places(model)} == set(blocks)
    assert set(blocks) <= set(representation_layers(model))
