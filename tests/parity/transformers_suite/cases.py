"""DeiT and ViT under the common tests of transformers; copied beside them and run by `__main__.py`, not from here.

The environment variable SIDE says whose classes are tested: "deit" (this package) or "transformers" (the control).
"""

from __future__ import annotations

import importlib
import os
import unittest
from typing import Any, ClassVar

import torch
from transformers.testing_utils import torch_device

from .plumbing import InOurNames, InOurWords, install
from .test_configuration_common import ConfigTester
from .test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from .test_modeling_common import ModelTesterMixin

SIDE = os.environ["SIDE"]
LIBRARY: Any = importlib.import_module(SIDE)
if SIDE == "deit":
    install()
BATCH, SIZE, PATCH, CLASSES = 13, 30, 2, 10
FIELDS = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "num_channels": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "encoder_stride": PATCH,
    "attn_implementation": "eager",
}


class Images:
    """What the common tests ask of a model's own tester."""

    image_size, patch_size, batch_size, num_hidden_layers, is_training = SIZE, PATCH, BATCH, 2, True
    num_attention_heads, hidden_size = 4, 32
    mask_length = (SIZE // PATCH) ** 2
    num_masks = mask_length // 2

    def __init__(self, config_class: Any) -> None:
        self.config_class = config_class
        self.seq_length = (SIZE // PATCH) ** 2 + (2 if config_class.model_type == "deit" else 1)

    def get_config(self) -> Any:
        return self.config_class(**FIELDS)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        return self.get_config(), {"pixel_values": torch.rand(BATCH, 3, SIZE, SIZE, device=torch_device)}


class _Models(ModelTesterMixin):
    """Settings of transformers' own tests of DeiT and ViT, and what they test besides the common."""

    test_resize_embeddings = False
    kind = ""

    def setUp(self) -> None:
        config_class = getattr(LIBRARY, f"{self.kind}Config")
        self.model_tester = Images(config_class)
        self.config_tester = ConfigTester(self, config_class=config_class, has_text_modality=False, hidden_size=37)
        if self._testMethodName.startswith(("test_training", "test_problem_types")) and SIDE == "transformers":
            # transformers' class with two heads has no loss
            self.all_model_classes = tuple(c for c in self.all_model_classes if not c.__name__.endswith("WithTeacher"))

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if model_class.__name__ == "DeiTForImageClassificationWithTeacher" and SIDE == "transformers":
            inputs.pop("labels", None)  # the class takes none
        return inputs

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @unittest.skip("images have no inputs_embeds")
    def test_inputs_embeds(self) -> None: ...

    def test_model_get_set_embeddings(self) -> None:
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            found = model.get_output_embeddings()
            self.assertTrue(found is None or isinstance(found, torch.nn.Linear))

    def test_outputs_have_the_shapes_of_the_model(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for channels in (3, 1):
            config.num_channels, config.num_labels = channels, CLASSES
            pixels = inputs["pixel_values"][:, :channels]
            for model_class in self.all_model_classes:
                model = model_class(config).eval()
                output = model(pixels)
                if "Masked" in model_class.__name__:
                    self.assertEqual(output.reconstruction.shape, (BATCH, channels, SIZE, SIZE))
                elif "Classification" in model_class.__name__:
                    self.assertEqual(output.logits.shape, (BATCH, CLASSES))
                else:
                    self.assertEqual(output.last_hidden_state.shape, (BATCH, self.model_tester.seq_length, 32))

    def test_positions_are_interpolated(self) -> None:
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config).eval()
        output = model(torch.rand(1, 3, 2 * SIZE, 2 * SIZE), interpolate_pos_encoding=True)
        extra = self.model_tester.seq_length - (SIZE // PATCH) ** 2
        self.assertEqual(output.last_hidden_state.shape, (1, 4 * (SIZE // PATCH) ** 2 + extra, 32))


_Words: type[Any] = InOurWords if SIDE == "deit" else type("TheirWords", (), {})


class DeiTModelTest(_Words, _Models, unittest.TestCase):
    kind = "DeiT"
    all_model_classes = (
        LIBRARY.DeiTModel,
        LIBRARY.DeiTForImageClassification,
        LIBRARY.DeiTForImageClassificationWithTeacher,
        LIBRARY.DeiTForMaskedImageModeling,
    )


class ViTModelTest(_Words, _Models, unittest.TestCase):
    kind = "ViT"
    all_model_classes = (LIBRARY.ViTModel, LIBRARY.ViTForImageClassification, LIBRARY.ViTForMaskedImageModeling)


class Processors(ImageProcessingTester):
    """What the common tests ask of a processor's own tester."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent, **parent.options)
        self.image_size = 18

    def _get_image_processing_classes(self) -> dict[str, Any]:
        kind = self.parent.kind
        if SIDE == "deit":
            names = {"torchvision": f"{kind}ImageProcessorFast", "pil": f"{kind}ImageProcessor"}
        else:
            names = {"torchvision": f"{kind}ImageProcessor", "pil": f"{kind}ImageProcessorPil"}
        return {backend: getattr(LIBRARY, name) for backend, name in names.items()}

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        return dict(self.parent.options)


class _Processing(ImageProcessingTestMixin):
    """Settings of transformers' own tests of the processors."""

    image_processor_tester_class = Processors
    kind = ""
    options: ClassVar[dict[str, Any]]

    def test_size_is_in_the_dict(self) -> None:
        for processor_class in self.image_processing_classes.values():
            processor = processor_class.from_dict(self.image_processor_dict)
            self.assertEqual(processor.size, self.options["size"])
            processor = processor_class.from_dict(self.image_processor_dict, size=42)
            self.assertEqual(processor.size, {"height": 42, "width": 42})


NORMALIZATION = {"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
RESIZING = {"do_resize": True, "size": {"height": 18, "width": 18}}


_Names: type[Any] = InOurNames if SIDE == "deit" else type("TheirNames", (), {})


class DeiTImageProcessingTest(_Names, _Processing, unittest.TestCase):
    kind = "DeiT"
    options: ClassVar[dict[str, Any]] = {
        "do_resize": True,
        "size": {"height": 20, "width": 20},
        "do_center_crop": True,
        "crop_size": {"height": 18, "width": 18},
        **NORMALIZATION,
    }

    def test_crop_size_is_in_the_dict(self) -> None:
        for processor_class in self.image_processing_classes.values():
            processor = processor_class.from_dict(self.image_processor_dict, crop_size=84)
            self.assertEqual(processor.crop_size, {"height": 84, "width": 84})


class ViTImageProcessingTest(_Names, _Processing, unittest.TestCase):
    kind = "ViT"
    options: ClassVar[dict[str, Any]] = {**RESIZING, **NORMALIZATION}
