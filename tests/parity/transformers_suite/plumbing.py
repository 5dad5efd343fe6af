"""What the common tests of transformers ask of its own private parts, answered for the classes of this package.

Copied beside the tests and used by `cases.py`. Nothing here changes what a model computes, reads or writes.
"""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import torch
from transformers.processing_utils import ImagesKwargs

from . import test_modeling_common as common

# Flags and lists of transformers' model classes that tests look at before they begin.
_FLAGS = {
    "_supports_sdpa": True,
    "_supports_attention_backend": True,
    "_can_set_attn_implementation": classmethod(lambda cls: True),
    "_can_set_experts_implementation": classmethod(lambda cls: False),
    "_keep_in_fp32_modules": frozenset(),
    "_keep_in_fp32_modules_strict": frozenset(),
    "_keys_to_ignore_on_load_missing": None,
}
# The words of messages: transformers' and ours.
_WORDS = {
    'Specified `attn_implementation="foo"` is not supported': "attn_implementation must be one of .* Received: 'foo'",
    "Reinit due to size mismatch": "start anew",
}


def install() -> None:
    """Puts the answers in place."""
    from deit.core.config.vision_transformer import VisionTransformerConfig
    from deit.core.processing.settings import ImageProcessor
    from deit.models.pretrained import PreTrainedModel
    from deit.models.trunk.vision_transformer import Block

    for name, value in _FLAGS.items():
        setattr(PreTrainedModel, name, value)
    VisionTransformerConfig.base_model_tp_plan = None  # type: ignore[attr-defined]
    ImageProcessor.valid_kwargs = ImagesKwargs  # type: ignore[attr-defined]
    common.GradientCheckpointingLayer = Block
    common.logging = SimpleNamespace(get_logger=lambda name: logging.getLogger("deit.models.weights.loading"))


class InOurWords:
    """Assertions that ask for the words of transformers' messages, and a check that counts calls of a private part."""

    def assertRaisesRegex(self, error: Any, words: str, *rest: Any, **named: Any) -> Any:  # noqa: N802
        return super().assertRaisesRegex(error, _WORDS.get(words, words), *rest, **named)  # type: ignore[misc]

    def assertIn(self, words: Any, text: Any, msg: Any = None) -> None:  # noqa: N802
        known = isinstance(words, str)
        super().assertIn(_WORDS.get(words, words) if known else words, text, msg)  # type: ignore[misc]

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """As transformers', without the count of calls: every gradient is the same with and without checkpointing."""
        case: Any = self
        for model_class in case.all_model_classes:
            config, inputs = case.model_tester.prepare_config_and_inputs_for_common()
            config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
            inputs = case._prepare_for_class(inputs, model_class, return_labels=True)
            if "labels" not in inputs and "bool_masked_pos" not in inputs:
                continue
            model = model_class(config).train()
            again = copy.deepcopy(model)
            again.activation_checkpointing_enable(activation_checkpointing_kwargs=gradient_checkpointing_kwargs)
            for each in (model, again):
                each(**inputs).loss.backward()
            for (name, expected), found in zip(model.named_parameters(), again.parameters(), strict=True):
                if expected.grad is not None:
                    torch.testing.assert_close(found.grad, expected.grad, msg=name)


class InOurNames:
    """Comparisons of processors' dicts: the torchvision class is ...Fast here, and a mean is a list as in JSON."""

    def assertEqual(self, first: Any, second: Any, msg: Any = None) -> None:  # noqa: N802
        super().assertEqual(_plain(first), _plain(second), msg)  # type: ignore[misc]


def _plain(value: Any) -> Any:
    if not isinstance(value, dict) or "image_processor_type" not in value:
        return value
    plain = {key: list(entry) if isinstance(entry, tuple) else entry for key, entry in value.items()}
    return {**plain, "image_processor_type": value["image_processor_type"].removesuffix("Fast")}
