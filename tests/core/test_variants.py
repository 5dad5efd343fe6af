"""The named architectures against the published ones."""

from __future__ import annotations

import pytest

from deit.core.config.config import DeiTConfig
from deit.core.published import VARIANTS, find_variant, list_models
from deit.core.variants import preprocessing_fields, same_architecture, variant_config

# Number of parameters of the published files with 1000 classes (DeiT: model zoo of the paper's code; DeiT III: its
# table of results in millions, the exact numbers counted in timm's models).
PUBLISHED_PARAMETERS = {
    "deit-tiny-distilled-patch16-224": 5_910_800,
    "deit-small-distilled-patch16-224": 22_436_432,
    "deit-base-distilled-patch16-224": 87_338_192,
    "deit-base-distilled-patch16-384": 87_630_032,
    "deit-tiny-patch16-224": 5_717_416,
    "deit-small-patch16-224": 22_050_664,
    "deit-base-patch16-224": 86_567_656,
    "deit-base-patch16-384": 86_859_496,
    "deit3-small-patch16-224": 22_059_496,
    "deit3-small-patch16-384": 22_205_416,
    "deit3-medium-patch16-224": 38_849_512,
    "deit3-base-patch16-224": 86_585_320,
    "deit3-base-patch16-384": 86_877_160,
    "deit3-large-patch16-224": 304_374_760,
    "deit3-large-patch16-384": 304_763_880,
    "deit3-huge-patch14-224": 632_126_440,
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name):
    torch = pytest.importorskip("torch")
    import deit

    distilled = VARIANTS[name].distilled
    model_class = deit.DeiTForImageClassificationWithTeacher if distilled else deit.ViTForImageClassification
    with torch.device("meta"):
        model = model_class(variant_config(name, num_labels=1000))
    assert model.num_parameters() == PUBLISHED_PARAMETERS[name] == VARIANTS[name].parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_the_number_of_parameters_follows_from_the_sizes(name):
    """Worked out from the papers' architectures, for 1000 classes."""
    v = VARIANTS[name]
    d, patches = v.hidden_size, (v.image_size // v.patch_size) ** 2
    prefix = 2 if v.distilled else 1
    positions = patches if v.layer_scale_init else patches + prefix
    embeddings = v.patch_size**2 * 3 * d + d + prefix * d + positions * d
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    block += 2 * d if v.layer_scale_init else 0
    expected = embeddings + v.depth * block + 2 * d + prefix * (1000 * d + 1000)
    assert v.parameters in (None, expected)
    assert (v.parameters is None) == (v.source is None) == (v.top1 is None)


def test_all_published_models_have_a_name_and_a_source():
    names = list_models()
    assert len([n for n in names if n.startswith("deit-")]) == 8
    assert len([n for n in names if n.startswith("deit3-")]) == 16
    assert VARIANTS["deit-base-patch16-384"].source == "facebook/deit-base-patch16-384"
    assert VARIANTS["deit3-large-patch16-384-in21k"].source == "timm/deit3_large_patch16_384.fb_in22k_ft_in1k"
    assert VARIANTS["deit3-huge-patch14-224"].source == "timm/deit3_huge_patch14_224.fb_in1k"
    assert set(list_models(published=False)) - set(names) == {
        "deit-digits-distilled-patch8-32",
        "deit-tiny-distilled-patch4-32",
        "deit-micro-distilled-patch4-32",
        "deit-mini-distilled-patch4-32",
        "deit-micro-distilled-patch8-64",
        "deit-mini-distilled-patch8-64",
    }


def test_the_published_scores_come_with_their_preprocessing():
    assert (VARIANTS["deit-tiny-patch16-224"].top1, VARIANTS["deit3-huge-patch14-224-in21k"].top1) == (72.202, 87.2)
    fields = preprocessing_fields(VARIANTS["deit-base-distilled-patch16-384"])
    assert fields["size"] == {"shortest_edge": 438}
    assert fields["crop_size"] == {"height": 384, "width": 384}
    assert preprocessing_fields(VARIANTS["deit3-small-patch16-224"])["size"] == {"shortest_edge": 224}


def test_variants_without_distillation_are_vits():
    config = variant_config("deit3-large-patch16-384")
    assert (config.model_type, config.layer_scale_init, config.pos_embed_prefix) == ("vit", 1e-4, False)
    config = variant_config("deit-tiny-patch16-224")
    assert (config.model_type, config.layer_scale_init, config.pos_embed_prefix) == ("vit", 0.0, True)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_known_again_by_its_sizes(name):
    assert same_architecture(variant_config(name, num_labels=3).to_dict()) == name.removesuffix("-in21k")


def test_other_sizes_are_no_variant():
    assert same_architecture(variant_config("deit-tiny-patch16-224", num_attention_heads=6).to_dict()) is None


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
