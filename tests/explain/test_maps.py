"""Maps against formulas written by hand on the model of transformers, whose eager attention gives its probabilities."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deit
from deit.core.errors import UserError
from deit.explain.maps import METHODS, class_number, explain_image, scaled
from deit.explain.network import Network, with_gradients

KINDS = ("distilled", "deit", "vit")


def heads_of(output: Any) -> dict[str, Tensor]:
    """Returns the logits of each head of transformers' output, with the number of its token."""
    if hasattr(output, "cls_logits"):
        return {"class": output.cls_logits, "distillation": output.distillation_logits}
    return {"class": output.logits}


def prefix_of(kind: str) -> int:
    return 1 if kind == "vit" else 2


def min_max(values: Tensor) -> np.ndarray[Any, Any]:
    values = values.detach()
    return ((values - values.min()) / (values.max() - values.min())).reshape(4, 4).numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_is_the_product_of_mean_attentions_with_the_residual(kind, model_of, theirs, pixels):
    model = model_of(kind)
    output = theirs(model)(pixels, output_attentions=True)
    product = torch.eye(16 + prefix_of(kind))
    rows = []
    for attention in output.attentions:
        step = attention[0].mean(0) + torch.eye(len(product))
        product = (step / step.sum(-1, keepdim=True)) @ product
        rows.append(product[:, prefix_of(kind) :])
    found = explain_image(model, pixels, method="rollout")
    for number, name in enumerate(heads_of(output)):
        torch.testing.assert_close(
            torch.tensor(found.heads[name].values).flatten(), rows[-1][number], atol=1e-6, rtol=1e-5
        )
        for block, row in zip(found.heads[name].blocks, rows, strict=True):
            np.testing.assert_allclose(block, min_max(row[number]), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_relevance_is_that_of_chefer(kind, model_of, theirs, pixels):
    model = model_of(kind)
    output = theirs(model)(pixels, output_attentions=True)
    found = explain_image(model, pixels, method="relevance", target=3)
    for number, (name, logits) in enumerate(heads_of(output).items()):
        gradients = torch.autograd.grad(logits[0, 3], output.attentions, retain_graph=True)
        matrix = torch.eye(16 + prefix_of(kind))
        for attention, gradient, block in zip(output.attentions, gradients, found.heads[name].blocks, strict=True):
            matrix = matrix + (attention * gradient)[0].clamp(min=0).mean(0) @ matrix
            np.testing.assert_allclose(block, min_max(matrix[number, prefix_of(kind) :]), atol=1e-4)
        expected = matrix[number, prefix_of(kind) :].detach()
        torch.testing.assert_close(torch.tensor(found.heads[name].values).flatten(), expected, atol=1e-6, rtol=1e-4)
        assert found.heads[name].logit == pytest.approx(logits[0, 3].item(), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_legrad_is_the_positive_gradient_of_each_blocks_own_logit(kind, model_of, theirs, pixels):
    model = model_of(kind)
    original = theirs(model)
    output = original(pixels, output_attentions=True, output_hidden_states=True)
    trunk = getattr(original, original.base_model_prefix)
    classifiers = [getattr(original, n) for n in ("cls_classifier", "distillation_classifier") if hasattr(original, n)]
    found = explain_image(model, pixels, method="legrad", target=1)
    for name, classifier in zip(heads_of(output), classifiers or [original.classifier], strict=True):
        rows = []
        for attention, state in zip(output.attentions, output.hidden_states[1:], strict=True):
            logit = classifier(trunk.layernorm(state.mean(1)))[0, 1]
            gradient = torch.autograd.grad(logit, attention, retain_graph=True)[0]
            rows.append(gradient[0].clamp(min=0).mean((0, 1))[prefix_of(kind) :])
        expected = torch.stack(rows).mean(0)
        torch.testing.assert_close(torch.tensor(found.heads[name].values).flatten(), expected, atol=1e-7, rtol=1e-3)
        for block, row in zip(found.heads[name].blocks, rows, strict=True):
            np.testing.assert_allclose(block, min_max(row), atol=1e-4)


def test_the_map_of_both_heads_is_their_mean(model_of, pixels):
    for method in METHODS:
        heads = explain_image(model_of("distilled"), pixels, method=method, target=2).heads
        assert list(heads) == ["both", "class", "distillation"]
        mean = (heads["class"].values + heads["distillation"].values) / 2
        np.testing.assert_allclose(heads["both"].values, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields", [{"layer_scale_init": 0.5}, {"pos_embed_prefix": False}, {"qkv_bias": False}, {"hidden_act": "relu"}, {}]
)
def test_the_network_computed_anew_answers_as_the_model(kind, fields, model_of, pixels):
    model = model_of(kind, **fields)
    with torch.no_grad():
        expected = model(pixels)
    trace = Network(model).run(pixels)
    for name, logits in heads_of(expected).items():
        torch.testing.assert_close(trace.logits[name], logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(next(iter(trace.logits.values())), expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_other_image_sizes_are_explained_with_interpolated_positions(kind, model_of):
    model, pixels = model_of(kind), torch.randn(1, 3, 26, 21)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).logits
    with with_gradients(torch.device("cpu")):
        torch.testing.assert_close(
            next(iter(Network(model).run(pixels).logits.values())), expected, atol=1e-4, rtol=1e-4
        )
    for method in METHODS:
        found = explain_image(model, pixels, method=method)
        assert found.grid == (6, 5)
        assert {maps.blocks.shape for maps in found.heads.values()} == {(3, 6, 5)}


def test_gradients_are_those_of_the_plain_model(model_of, pixels):
    model, pixels = model_of("distilled"), pixels.requires_grad_()
    (expected,) = torch.autograd.grad(model(pixels).cls_logits[0, 2], pixels)
    (found,) = torch.autograd.grad(Network(model).run(pixels).logits["class"][0, 2], pixels)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


# --- targets ------------------------------------------------------------------------------------------


def test_the_target_is_the_predicted_class_or_any_other(model_of, pixels):
    model = model_of("distilled")
    with torch.no_grad():
        predicted = int(model(pixels).logits.argmax())
    found = explain_image(model, pixels)
    assert {found.target, *(maps.target for maps in found.heads.values())} == {predicted}
    assert explain_image(model, pixels, target="LABEL_4").label == "LABEL_4"
    own = explain_image(model, pixels, target={"class": 0, "distillation": "LABEL_1"}).heads
    assert (own["class"].target, own["distillation"].target, own["both"].target) == (0, 1, predicted)
    same = explain_image(model, pixels, target=1, heads=["distillation"]).heads
    assert list(same) == ["distillation"]
    np.testing.assert_array_equal(same["distillation"].values, own["distillation"].values)
    one, other = (explain_image(model, pixels, target=n).heads["class"].values for n in (0, 1))
    assert not np.allclose(one, other)


def test_a_class_is_found_by_name_or_number():
    names = ["cat", "7", "crane", "crane", "dog", "owl", "bat", "elk"]
    assert [class_number(t, names) for t in ("cat", "7", "6", 6, np.int64(0))] == [0, 1, 6, 6, 0]
    for wrong, words in (
        ("crane", "numbers 2, 3"),
        ("cow", "no class 'cow'"),
        (8, "8 classes"),
        (-1, "8 classes"),
        ("9" * 50, "8 classes"),
        (1.0, "number or the name"),
        (True, "number or the name"),
    ):
        with pytest.raises(UserError, match=words):
            class_number(wrong, names)  # type: ignore[arg-type]


# --- a model in use -----------------------------------------------------------------------------------


def state_of(model: Any) -> list[Any]:
    modules = dict(model.named_modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules.values()]
    parameters = [(p.data_ptr(), p._version, p.requires_grad, p.grad) for p in model.parameters()]
    return [
        list(modules),
        [type(m) for m in modules.values()],
        hooks,
        parameters,
        model.training,
        model.config.to_dict(),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was_also_after_an_error(method, model_of, pixels):
    model = model_of("distilled").train()
    before = state_of(model)
    explain_image(model, pixels, method=method)
    with pytest.raises(UserError, match="no class"):
        explain_image(model, pixels, method=method, target="none of them")
    with pytest.raises(UserError, match="smaller than a patch"):
        explain_image(model, pixels[..., :2], method=method)
    assert state_of(model) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", METHODS)
def test_training_mode_inference_mode_and_low_precision_make_no_difference(method, model_of, pixels):
    model = model_of("distilled", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    expected = explain_image(model, pixels, method=method, target=0).heads["both"].values
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = explain_image(model.train(), pixels.clone(), method=method, target=0).heads["both"].values
    np.testing.assert_array_equal(inside, expected)
    with torch.inference_mode():
        born = deit.DeiTForImageClassificationWithTeacher(model.config).eval()
        born.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(explain_image(born, pixels, method=method, target=0).heads["both"].values, expected)
    half = explain_image(model.eval().to(torch.bfloat16), pixels, method=method, target=0).heads["both"].values
    assert np.corrcoef(half.ravel(), expected.ravel())[0, 1] > 0.9


def test_threads_that_classify_meanwhile_get_the_same_answers(model_of, pixels):
    model = model_of("distilled")
    batch = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        expected = model(batch).logits
    stop, wrong = threading.Event(), []

    def classify() -> None:
        while not stop.is_set():
            with torch.inference_mode():
                if not torch.equal(model(batch).logits, expected):
                    wrong.append(1)

    thread = threading.Thread(target=classify)
    thread.start()
    try:
        for method in METHODS:
            explain_image(model, pixels, method=method)
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_a_model_that_merges_tokens_is_explained_without_merging_and_that_is_said(model_of, pixels):
    model = model_of("distilled")
    expected = explain_image(model, pixels, target=1)
    merged = explain_image(deit.merge_tokens(model, 3), pixels, target=1)
    np.testing.assert_array_equal(merged.heads["both"].values, expected.heads["both"].values)
    assert not expected.notes
    assert "without merging" in " ".join(merged.notes)
    assert model.config.token_merging == {"r": 3}


def test_pruned_heads_and_split_projections_are_explained(model_of, pixels):
    from deit.models.trunk.split_qkv import split_model

    model = model_of("distilled")
    expected = explain_image(model, pixels, target=1).heads["both"].values
    split_model(model, ("q", "k", "v"))
    np.testing.assert_allclose(explain_image(model, pixels, target=1).heads["both"].values, expected, atol=1e-6)
    pruned = model_of("vit", pruned_heads={0: [1]})
    with torch.no_grad():
        logit = float(pruned(pixels).logits[0, 1])
    assert explain_image(pruned, pixels, target=1).heads["class"].logit == pytest.approx(logit, abs=1e-4)


# --- what cannot be explained -------------------------------------------------------------------------


def test_other_models_are_refused(model_of, pixels):
    import timm

    with pytest.raises(UserError, match=r"a model of timm\. `deit convert`"):
        explain_image(timm.create_model("vit_tiny_patch16_224", depth=1), pixels)
    with pytest.raises(UserError, match="of the class Linear"):
        explain_image(torch.nn.Linear(1, 1), pixels)
    with pytest.raises(UserError, match="is no classifier"):
        explain_image(deit.ViTForMaskedImageModeling(model_of("vit").config), pixels)
    with pytest.raises(UserError, match="has no classes"):
        explain_image(model_of("vit", num_labels=0), pixels)
    replaced = model_of("vit")
    replaced.vit.trunk.blocks[1].mlp.fc1 = torch.nn.Sequential(replaced.vit.trunk.blocks[1].mlp.fc1)
    with pytest.raises(UserError, match=r"'blocks\.1\.mlp\.fc1' of the model was replaced by a Sequential"):
        explain_image(replaced, pixels)


def test_wrong_arguments_are_refused(model_of, pixels):
    model = model_of("vit")
    for arguments, words in (
        ({"method": "gradcam"}, "Unknown method 'gradcam'. Known: relevance"),
        ({"heads": ["distillation"]}, "has the heads class"),
        ({"heads": []}, "has the heads class"),
        ({"target": {"both": 1}}, "has the heads class"),
        ({"target": 5}, "has 5 classes"),
    ):
        with pytest.raises(UserError, match=words):
            explain_image(model, pixels, **arguments)
    with pytest.raises(UserError, match="shape"):
        explain_image(model, pixels[0])
    with pytest.raises(UserError, match="shape"):
        explain_image(model, pixels[:, :1])
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        explain_image(model, pixels)


def test_maps_lie_between_0_and_1_and_a_map_without_differences_is_0(model_of, pixels):
    for method in METHODS:
        for maps in explain_image(model_of("distilled"), pixels, method=method).heads.values():
            for shown in (maps.overall, *maps.blocks):
                assert shown.dtype == np.float32
                assert 0 <= shown.min() <= shown.max() == 1
    assert not scaled(np.full((2, 2), 3.0, np.float32), signed=False).any()
    np.testing.assert_array_equal(scaled(np.array([[-1.0, 2.0, 4.0]], np.float32), signed=True), [[0, 0.5, 1]])
