"""The named architectures against the published ones."""

from __future__ import annotations

import pytest

from deit.core.configuration import DeiTConfig
from deit.core.variants import VARIANTS, find_variant, variant_config

# Number of parameters of the published files with 1000 classes (paper, Tables 1 and 5, in millions: 6, 22, 87).
PUBLISHED_PARAMETERS = {
    "deit-tiny-distilled-patch16-224": 5_910_800,
    "deit-small-distilled-patch16-224": 22_436_432,
    "deit-base-distilled-patch16-224": 87_338_192,
    "deit-base-distilled-patch16-384": 87_630_032,
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name):
    torch = pytest.importorskip("torch")
    from deit.models.deit import DeiTForImageClassificationWithTeacher

    with torch.device("meta"):
        model = DeiTForImageClassificationWithTeacher(variant_config(name, num_labels=1000))
    assert model.num_parameters() == PUBLISHED_PARAMETERS[name] == VARIANTS[name].parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_the_number_of_parameters_follows_from_the_sizes(name):
    """Worked out from the paper's architecture, for 1000 classes."""
    v = VARIANTS[name]
    d, patches = v.hidden_size, (v.image_size // v.patch_size) ** 2
    embeddings = v.patch_size**2 * 3 * d + d + 2 * d + (patches + 2) * d
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    expected = embeddings + v.depth * block + 2 * d + 2 * (1000 * d + 1000)
    assert v.parameters in (None, expected)
    assert (v.parameters is None) == (v.source is None)


def test_a_variant_gives_its_configuration():
    config = variant_config("deit-small-distilled-patch16-224", num_labels=7)
    assert isinstance(config, DeiTConfig)
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == (384, 12, 6, 1536)
    assert (config.image_size, config.patch_size, config.encoder_stride, config.num_labels) == (224, 16, 16, 7)
    assert config.layer_norm_eps == 1e-6


def test_fields_of_a_variant_can_be_overridden():
    config = variant_config("deit-tiny-distilled-patch16-224", image_size=64, drop_path_rate=0.1)
    assert (config.image_size, config.patch_size, config.drop_path_rate) == (64, 16, 0.1)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_found_by_its_name(name):
    assert find_variant(name) is VARIANTS[name]
    assert str(VARIANTS[name].image_size) in name
    assert f"patch{VARIANTS[name].patch_size}-" in name


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("deit-tinny-distilled-patch16-224", "deit-tiny-distilled-patch16-224"),
        ("deit-smal-distilled-patch16-224", "deit-small-distilled-patch16-224"),
        ("deit-base-distilled-patch16-348", "deit-base-distilled-patch16-384"),
        ("deit-digit-distiled", "deit-digits-distilled-patch[0-9]+-32"),
    ],
)
def test_a_typo_in_a_name_suggests_the_nearest_one(typo, meant):
    with pytest.raises(ValueError, match=f"Unknown variant '{typo}'. Did you mean '{meant}'"):
        variant_config(typo)


def test_a_name_like_no_other_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown variant '42'. Known: deit-tiny-distilled-patch16-224, "):
        find_variant("42")
