import pytest

from deit.train.teachers.label_matching import head_rows, imagenet_labels, match_labels


@pytest.mark.parametrize(
    ("known", "wanted", "places", "rule"),
    [
        (["a", "b"], ["a", "b"], (0, 1), "by name"),
        (["a", "b", "c"], ["c", "a"], (2, 0), "by name"),
        (["a", "A"], ["A", "a"], (1, 0), "by name"),
        (["x", "x"], ["x", "x"], (0, 1), "by name"),
        (["Polar Bear", "cat"], ["cat", "polar_bear"], (1, 0), "by name, ignoring case and separators"),
        (["T-shirt"], ["tshirt"], (0,), "by name, ignoring case and separators"),
    ],
)
def test_classes_are_found_by_name(known, wanted, places, rule):
    match = match_labels(known, wanted)
    assert (match.places, match.rule, match.missing) == (places, rule, ())


@pytest.mark.parametrize(
    ("known", "wanted", "missing"),
    [
        (["a", "b"], ["a", "c"], ("c",)),
        (["crane", "crane", "cat"], ["cat", "crane"], ("crane",)),  # which of the two?
        (["Sea-lion", "sea lion"], ["sealion"], ("sealion",)),
        (["cat"], ["Cat", "CAT"], ("Cat", "CAT")),
    ],
)
def test_classes_that_are_not_there_or_not_sure_are_missing(known, wanted, missing):
    match = match_labels(known, wanted)
    assert (match.places, match.missing) == ((), missing)


def test_folders_of_imagenet_are_known_to_a_model_that_says_words_and_the_reverse():
    identities = imagenet_labels()
    meta = pytest.importorskip("torchvision").models.get_model_weights("resnet18").DEFAULT.meta
    match = match_labels(meta["categories"], ["n01443537", "n01440764"])
    assert (match.places, match.rule) == ((1, 0), "by ImageNet's names")
    assert match_labels(identities, ["goldfish", "tench", "crane bird"]).missing == ("crane bird",)
    assert match_labels(identities, ["goldfish", "Tench"]).places == (1, 0)
    assert match_labels(identities, ["tench, Tinca tinca"]).places == (0,)
    assert match_labels(meta["categories"], identities).places == tuple(range(1000))
    assert match_labels(["a", *identities[1:500]], ["goldfish"]).missing == ("goldfish",)


@pytest.mark.parametrize(
    ("known", "count", "rows"),
    [
        (["a", "b"], 2, (0, 1)),
        (["b", "a"], 2, (1, 0)),
        (["b", "a", "c"], 3, None),
        (["a", "c"], 2, None),
        (None, 2, (0, 1)),
        (None, 3, None),
        (None, 0, None),
    ],
)
def test_heads_are_kept_when_their_classes_are_those_of_the_data(known, count, rows):
    kept, notes = head_rows(known, count, ["a", "b"])
    assert kept == rows
    assert bool(notes) == (known != ["a", "b"])
