"""Features, against transformers; neighbours and linear classifier, against scikit-learn."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import transformers
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import KNeighborsClassifier

from deit.core.config.config import DeiTConfig, ViTConfig
from deit.core.images.reading import ImageError
from deit.core.processing.image_processor import evaluation_processor
from deit.data.sources import ArraySource, Subset
from deit.evaluate import features as feature_evaluation
from deit.evaluate.features import evaluate_features, linear_classifier, nearest_neighbours
from deit.inference.embedder import Embedder, embed_files, write_features
from deit.models.deit import DeiTForImageClassificationWithTeacher, DeiTForMaskedImageModeling, DeiTModel
from deit.models.vit import ViTForImageClassification
from tests.data.pictures import fill, picture, write_text

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
         "image_size": 16, "patch_size": 8, "encoder_stride": 8}  # fmt: skip


def saved(folder, model_class=DeiTForMaskedImageModeling, config_class=DeiTConfig):
    torch.manual_seed(0)
    model_class(config_class(**SIZES)).save_pretrained(folder)
    evaluation_processor((16, 16), crop_ratio=1.0, mean=(0.5,) * 3, std=(0.25,) * 3).save_pretrained(folder)
    return folder


def clusters(count: int, classes: int = 4, *, seed: int, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = random.integers(0, classes, count)
    return (centres[labels] + random.normal(0, 1.2, (count, width))).astype(np.float32), labels


# --- features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 0, 2, 3])
def test_every_token_of_every_block_equals_transformers(block, tmp_path):
    folder = saved(tmp_path)
    embedder = Embedder.open(folder)
    theirs = transformers.DeiTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        output = theirs(torch.from_numpy(pixels), output_hidden_states=True)
    tokens = (output.last_hidden_state if block is None else output.hidden_states[block]).numpy()
    received = embedder(pixels, block=block)
    assert list(received) == ["class", "distillation", "mean"]
    np.testing.assert_allclose(received["class"], tokens[:, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(received["distillation"], tokens[:, 1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(received["mean"], tokens[:, 2:].mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model_class", "config_class", "tokens"),
    [
        (DeiTForImageClassificationWithTeacher, DeiTConfig, ("class", "distillation", "mean")),
        (DeiTModel, DeiTConfig, ("class", "distillation", "mean")),
        (ViTForImageClassification, ViTConfig, ("class", "mean")),
    ],
)
def test_any_deit_or_vit_is_opened_in_silence(model_class, config_class, tokens, tmp_path, caplog):
    embedder = Embedder.open(saved(tmp_path, model_class, config_class))
    assert (embedder.tokens, embedder.depth) == (tokens, 3)
    assert not caplog.records


@pytest.mark.parametrize("use_mask_token", [True, False])
@pytest.mark.parametrize("add_pooling_layer", [True, False])
def test_a_trunk_is_opened_in_silence_whatever_stands_beside_it(add_pooling_layer, use_mask_token, tmp_path, caplog):
    def trunk(config):
        return DeiTModel(config, add_pooling_layer=add_pooling_layer, use_mask_token=use_mask_token)

    assert Embedder.open(saved(tmp_path, trunk)).tokens == ("class", "distillation", "mean")
    assert not caplog.records


def test_files_become_a_table_that_holds_their_features(tmp_path):
    import pyarrow.parquet as pq

    embedder = Embedder.open(saved(tmp_path / "model"))
    fill(tmp_path / "images", 2)
    broken = write_text(tmp_path / "broken.png")
    paths = [*sorted(str(p) for p in (tmp_path / "images").rglob("*.png")), str(broken)]
    parts = embed_files(embedder, paths, token="mean", block=1, batch_size=4)
    count, errors = write_features(tmp_path / "features.parquet", parts, notes={"token": "mean"})
    table = pq.read_table(tmp_path / "features.parquet")
    assert (count, table.column("image").to_pylist(), len(errors)) == (6, paths[:6], 1)
    assert str(broken) in errors[0]
    pixels = embedder.processor([picture("blue", 0)], return_tensors="np").pixel_values
    np.testing.assert_allclose(table.column("features")[0].as_py(), embedder(pixels, block=1)["mean"][0], atol=1e-6)
    assert table.schema.metadata[b"token"] == b"mean"


def test_nothing_is_written_where_no_image_can_be_read(tmp_path):
    embedder = Embedder.open(saved(tmp_path / "model"))
    broken = str(write_text(tmp_path / "broken.png"))
    with pytest.raises(ValueError, match=r"None of 1 file\(s\) could be read as an image"):
        write_features(tmp_path / "features.parquet", embed_files(embedder, [broken]), notes={})
    with pytest.raises(ValueError, match="is not an image"):
        list(embed_files(embedder, [broken], strict=True))
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        write_features(tmp_path / "no" / "features.parquet", iter(()), notes={})
    assert not list(tmp_path.glob("*.parquet*"))
    assert not list(tmp_path.glob(".*"))


def test_what_a_model_has_not_is_refused(tmp_path):
    embedder = Embedder.open(saved(tmp_path, ViTForImageClassification, ViTConfig))
    with pytest.raises(ValueError, match=r"token must be one of class, mean. Received: 'distillation'"):
        list(embed_files(embedder, [], token="distillation"))
    with pytest.raises(ValueError, match=r"block must lie between 0 .* and 3. Received: 4"):
        list(embed_files(embedder, [], block=4))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        list(embed_files(embedder, [], batch_size=0))
    with pytest.raises(ValueError, match="Unknown device 'nowhere'"):
        Embedder.open(tmp_path, "nowhere")


# --- neighbours and linear classifier -----------------------------------------------------------------


@pytest.fixture(params=["at once", "in chunks"])
def chunks(request, monkeypatch) -> None:
    if request.param == "in chunks":
        monkeypatch.setattr(feature_evaluation, "_BYTES", 900)  # 14 rows of 8 features
        monkeypatch.setattr(feature_evaluation, "_KNOWN_TOGETHER", 13)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("k", [1, 7, 20])
def test_neighbours_vote_as_in_scikit_learn(k):
    known, labels = clusters(150, seed=0)
    queries, _ = clusters(60, seed=1)
    theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07))
    votes = nearest_neighbours(known, labels, queries, 4, k=k)
    shares = votes / votes.sum(1, keepdims=True)
    np.testing.assert_allclose(shares, theirs.fit(known, labels).predict_proba(queries), rtol=1e-3, atol=1e-4)


def test_with_few_images_all_are_neighbours():
    known, labels = clusters(5, seed=0)
    assert nearest_neighbours(known, labels, known, 4).shape == (5, 4)


@pytest.mark.usefixtures("chunks")
def test_a_known_image_whose_features_are_not_numbers_is_no_neighbour():
    known, labels = clusters(150, seed=0)
    queries, _ = clusters(9, seed=1)
    expected = nearest_neighbours(known[40:], labels[40:], queries, 4)
    known[:40] = np.nan
    np.testing.assert_allclose(nearest_neighbours(known, labels, queries, 4), expected, rtol=1e-5)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("count", [150, 6])  # more and fewer images than features
def test_the_linear_classifier_is_the_ridge_regression_of_scikit_learn(count):
    known, labels = clusters(count, seed=2)
    queries, _ = clusters(40, seed=3)
    scores = linear_classifier(known, labels, queries, 4)
    mean, spread = known.mean(0, dtype=float), known.std(0, dtype=float)
    theirs = RidgeCV([10.0**p for p in range(-2, 6)], alpha_per_target=False)
    theirs.fit((known - mean) / spread, np.eye(4)[labels])
    np.testing.assert_allclose(scores, theirs.predict((queries - mean) / spread), rtol=1e-4, atol=1e-6)


def by_singular_values(known, labels, queries, classes: int) -> np.ndarray:
    """The same ridge regression from the singular values of the known features, with all its arrays whole."""
    mean, spread = known.mean(0, dtype=float), known.std(0, dtype=float)
    x, wanted = (known - mean) / spread, np.eye(classes)[labels]
    y = wanted - wanted.mean(0)
    u, singular, vt = np.linalg.svd(x, full_matrices=False)
    found = {}
    for strength in (10.0**power for power in range(-2, 6)):
        shrunk = singular**2 / (singular**2 + strength)
        fitted, leverage = u @ (shrunk[:, None] * (u.T @ y)), 1 / len(x) + u**2 @ shrunk
        error = (((y - fitted) / np.maximum(1 - leverage, 1e-12)[:, None]) ** 2).mean()
        found[error] = vt.T @ ((singular / (singular**2 + strength))[:, None] * (u.T @ y))
    return (queries - mean) / spread @ found[min(found)] + wanted.mean(0)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(("count", "width"), [(400, 8), (400, 24), (61, 24), (20, 24)])
@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])  # the best strength is small, between, and large
def test_the_linear_classifier_is_that_of_singular_values(count, width, noise):
    random = np.random.default_rng(count)
    labels = random.integers(0, 30, count)
    known = (random.normal(size=(31, width))[labels] + noise * random.normal(size=(count, width))).astype(np.float32)
    known *= 10.0 ** random.integers(-3, 3, width)
    queries = known[:15] + 1
    expected = by_singular_values(known, labels, queries, 31)  # one class has no image
    np.testing.assert_allclose(linear_classifier(known, labels, queries, 31), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("function", [nearest_neighbours, linear_classifier])
def test_memory_does_not_grow_with_the_known_images(function, monkeypatch):
    monkeypatch.setattr(feature_evaluation, "_BYTES", 2**20)
    known, labels = clusters(20_000, 200, seed=0)  # one array of images x classes has 32 MB, of images x queries 8
    tracemalloc.start()
    function(known, labels, known[:100], 200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_a_feature_that_never_changes_does_no_harm():
    known, labels = clusters(50, seed=0)
    queries, _ = clusters(9, seed=1)
    expected = linear_classifier(known[:, 1:], labels, queries[:, 1:], 4)
    for value in (3.0, 0.1):
        known[:, 0], queries[:, 0] = value, value + 0.1
        np.testing.assert_allclose(linear_classifier(known, labels, queries, 4), expected, rtol=1e-6, atol=1e-9)


def test_of_equal_answers_the_first_class_is_taken_and_nan_is_wrong():
    random = np.random.default_rng(0)
    answers, labels = random.integers(0, 3, (50, 7)).astype(float), random.integers(0, 7, 50)
    expected = (np.argsort(-answers, axis=1, kind="stable") == labels[:, None]).argmax(1)
    np.testing.assert_array_equal(feature_evaluation._places(answers, labels), expected)
    assert feature_evaluation._places(np.full((1, 7), np.nan), labels[:1]).tolist() == [7]


def test_scores_are_those_of_the_answers(tmp_path):
    embedder = Embedder.open(saved(tmp_path))

    def source(count: int, seed: int) -> ArraySource:
        labels = np.arange(count) % 3
        noise = np.random.default_rng(seed).normal((labels * 80 + 40)[:, None, None, None], 30, (count, 16, 16, 3))
        return ArraySource(noise.clip(0, 255).astype(np.uint8), labels)

    known, queries = source(30, 0), source(13, 1)
    calls = []
    scores = evaluate_features(embedder, known, queries, batch_size=8, on_batch=lambda *call: calls.append(call)).scores
    assert calls[-1] == (6, 6)
    assert [(s.token, s.method) for s in scores[:2]] == [("class", "nearest neighbours"), ("class", "linear")]
    assert len(scores) == 6
    pixels = [embedder.processor([s.image(i) for i in range(len(s.labels))], return_tensors="np").pixel_values
              for s in (known, queries)]  # fmt: skip
    features = [embedder(p)["mean"] for p in pixels]
    said = nearest_neighbours(features[0], known.labels, features[1], 3).argmax(1)
    assert scores[4].top1 == pytest.approx(100 * (said == queries.labels).mean())
    assert all(s.top5 == 100 and s.images == 13 for s in scores)
    with pytest.raises(ValueError, match="must have the same classes"):
        evaluate_features(embedder, known, ArraySource(np.zeros((2, 16, 16), np.uint8), np.array([0, 1])))


def test_images_that_become_unreadable_are_left_out_on_both_sides(tmp_path):
    """The scores are those of the others alone; more of them than make up a batch are missing in a row."""
    embedder = Embedder.open(saved(tmp_path))
    random = np.random.default_rng(0)
    known, queries = (
        ArraySource(random.integers(0, 256, (count, 16, 16, 3), np.uint8), np.arange(count) % 3) for count in (30, 13)
    )
    gone = (np.array([0, *range(8, 16), 29]), np.array([3, 12]))
    found = evaluate_features(embedder, Fading(known, gone[0]), Fading(queries, gone[1]), batch_size=4)
    readable = [
        Subset(source, np.setdiff1d(np.arange(len(source.labels)), missing))
        for source, missing in zip((known, queries), gone, strict=True)
    ]
    expected = evaluate_features(embedder, *readable, batch_size=4)
    assert found.scores == expected.scores
    assert {score.images for score in found.scores} == {11}
    assert (found.known, len(found.unreadable_known), found.unreadable) == (20, 10, ["3 is gone.", "12 is gone."])
    with pytest.raises(ImageError, match=r"No image can be read any more; the first: 0 is gone"):
        evaluate_features(embedder, Fading(known, np.arange(30)), queries)


class Fading:
    """A source of which some images cannot be read any more."""

    def __init__(self, source: ArraySource, gone: np.ndarray) -> None:
        self._source, self._gone = source, gone
        self.classes, self.labels, self.problem_type = source.classes, source.labels, source.problem_type

    def image(self, index: int):
        if index in self._gone:
            raise ImageError(f"{index} is gone.")
        return self._source.image(index)
