"""Models by name."""

import pytest

from kawara.config import from_dict, to_dict
from kawara.errors import ConfigError, UnknownNameError
from kawara.models import MODELS, ViTConfig, build, config_type, create_model, family_of, model_config, model_names


def test_names_are_the_rows() -> None:
    assert model_names() == list(MODELS)
    for name in ("vit_tiny_16", "vit_huge_14", "vit_mini_4", "vit_femto_conv_4", "vit_nano_7", "resnet18", "seresnet50", "resnet_femto"):
        assert name in model_names()
    for name in ("regnety_16gf", "convnext_tiny", "convnext_zepto_2", "resnet20", "resnet18_small"):
        assert name in model_names()


def test_each_row_says_what_it_is_and_where_it_comes_from() -> None:
    for name in model_names():
        variant = MODELS[name]
        assert variant.name == name
        assert variant.description
        assert variant.source


def test_arguments_reach_the_configuration() -> None:
    config = model_config("vit_tiny_16", num_classes=7, image_size=(32, 64), channels=1, registers=4, layer_scale=0.1)
    assert (config.num_classes, config.image_size, config.channels, config.registers, config.layer_scale) == (7, (32, 64), 1, 4, 0.1)
    assert model_config("vit_tiny_16", image_size=384).image_size == (384, 384)
    assert model_config("vit_tiny_16").image_size == (224, 224)
    assert create_model("vit_femto_4", num_classes=3).config.num_classes == 3


def test_unknown_names_offer_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="vit_tiny_16"):
        create_model("vit_tiny16")
    with pytest.raises(UnknownNameError, match="registers"):
        model_config("vit_tiny_16", register=4)
    with pytest.raises(UnknownNameError, match="vit"):
        config_type("vitt")


def test_a_size_that_does_not_fit_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="224 px instead of 230 px or 240 px instead of 230 px"):
        create_model("vit_tiny_16", image_size=230)


def test_configurations_survive_json() -> None:
    for name in ("vit_tiny_16", "vit_femto_conv_4"):
        config = model_config(name)
        assert family_of(config) == "vit"
        assert config_type("vit") is ViTConfig
        assert from_dict(ViTConfig, to_dict(config)) == config
    config = model_config("vit_femto_conv_4", stem_hidden=(24, 48))
    assert from_dict(ViTConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("name", "family"), [("seresnet50", "resnet"), ("resnet20", "resnet"), ("regnety_1_6gf", "regnet"), ("convnext_atto_2", "convnext")]
)
def test_every_family_is_found_again(name: str, family: str) -> None:
    config = model_config(name, num_classes=7, channels=1, stochastic_depth=0.1, dropout=0.2)
    assert family_of(config) == family
    assert from_dict(config_type(family), to_dict(config)) == config
    assert type(build(config)).__name__.lower() == family
