"""What the documentation of transformers shows for DeiT, with another import line and a local checkpoint.

Every sample runs twice, with `transformers` and with `deit` in the import line, and prints the same.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.processor_cases import rgb

transformers = pytest.importorskip("transformers")

SAMPLES = {
    "pipeline": (
        "DeiTForImageClassificationWithTeacher",
        """
from {library} import pipeline
import torch

classifier = pipeline(task="image-classification", model="{checkpoint}", dtype=torch.float32, device="cpu")
for entry in classifier("{picture}"):
    print(entry["label"], round(entry["score"], 4))
""",
    ),
    "AutoModel": (
        "DeiTForImageClassificationWithTeacher",
        """
import torch
from PIL import Image
from {library} import AutoImageProcessor, AutoModelForImageClassification

image_processor = AutoImageProcessor.from_pretrained("{checkpoint}")
model = AutoModelForImageClassification.from_pretrained(
    "{checkpoint}", dtype=torch.float32, device_map="cpu", attn_implementation="sdpa"
)
image = Image.open("{picture}")
inputs = image_processor(image, return_tensors="pt").to(model.device)

with torch.no_grad():
    logits = model(**inputs).logits
predicted_class_id = logits.argmax(dim=-1).item()

class_labels = model.config.id2label
predicted_class_label = class_labels[predicted_class_id]
print(f"The predicted class label is: {{predicted_class_label}}")
""",
    ),
    "DeiTModel": (
        "DeiTModel",
        """
import torch
from PIL import Image
from {library} import AutoImageProcessor, DeiTModel

image_processor = AutoImageProcessor.from_pretrained("{checkpoint}")
model = DeiTModel.from_pretrained("{checkpoint}")

inputs = image_processor(Image.open("{picture}"), return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)

last_hidden_states = outputs.last_hidden_state
print(list(last_hidden_states.shape), [round(v, 3) for v in last_hidden_states[0, 0, :4].tolist()])
""",
    ),
    "DeiTForMaskedImageModeling": (
        "DeiTForMaskedImageModeling",
        """
from {library} import AutoImageProcessor, DeiTForMaskedImageModeling
import torch
from PIL import Image

image = Image.open("{picture}")

image_processor = AutoImageProcessor.from_pretrained("{checkpoint}")
model = DeiTForMaskedImageModeling.from_pretrained("{checkpoint}")

num_patches = (model.config.image_size // model.config.patch_size) ** 2
pixel_values = image_processor(images=image, return_tensors="pt").pixel_values
# create random boolean mask of shape (batch_size, num_patches)
torch.manual_seed(3)
bool_masked_pos = torch.randint(low=0, high=2, size=(1, num_patches)).bool()

outputs = model(pixel_values, bool_masked_pos=bool_masked_pos)
loss, reconstructed_pixel_values = outputs.loss, outputs.reconstruction
print(list(reconstructed_pixel_values.shape), round(loss.item(), 3))
""",
    ),
    "DeiTForImageClassification": (
        "DeiTForImageClassification",
        """
from {library} import AutoImageProcessor, DeiTForImageClassification
import torch
from PIL import Image

torch.manual_seed(3)
image = Image.open("{picture}")

image_processor = AutoImageProcessor.from_pretrained("{checkpoint}")
model = DeiTForImageClassification.from_pretrained("{checkpoint}")

inputs = image_processor(images=image, return_tensors="pt")
outputs = model(**inputs)
logits = outputs.logits
predicted_class_idx = logits.argmax(-1).item()
print("Predicted class:", model.config.id2label[predicted_class_idx])
""",
    ),
    "DeiTForImageClassification with labels": (
        "DeiTForImageClassification",
        """
from {library} import AutoImageProcessor, DeiTForImageClassification
import torch
from PIL import Image

image_processor = AutoImageProcessor.from_pretrained("{checkpoint}", use_fast=False)
model = DeiTForImageClassification.from_pretrained("{checkpoint}", problem_type="single_label_classification")
inputs = image_processor([Image.open("{picture}")] * 2, return_tensors="pt")
loss = model(**inputs, labels=torch.tensor([1, 4])).loss
loss.backward()
print(round(loss.item(), 4))
""",
    ),
    "DeiTForImageClassificationWithTeacher": (
        "DeiTForImageClassificationWithTeacher",
        """
from {library} import AutoImageProcessor, DeiTForImageClassificationWithTeacher
import torch
from PIL import Image

image_processor = AutoImageProcessor.from_pretrained("{checkpoint}")
model = DeiTForImageClassificationWithTeacher.from_pretrained("{checkpoint}")

inputs = image_processor(Image.open("{picture}"), return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits

# model predicts one of the classes
predicted_label = logits.argmax(-1).item()
print(model.config.id2label[predicted_label])
""",
    ),
    "configuration": (
        "DeiTModel",
        """
from {library} import DeiTConfig, DeiTModel

# Initializing a DeiT configuration
configuration = DeiTConfig(hidden_size=48, num_hidden_layers=1)

# Initializing a model (with random weights)
model = DeiTModel(configuration)

# Accessing the model configuration
configuration = model.config
print(configuration.hidden_size, configuration.image_size, model.num_parameters())
""",
    ),
}


def printed(code: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "sample", "exec"), {"__name__": "sample"})
    return output.getvalue()


@pytest.mark.filterwarnings("ignore:The `use_fast` parameter is deprecated")
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_of_the_documentation_prints_the_same(
    sample: str, tmp_path: Path, tiny_fields: dict[str, Any], redraw: Callable[..., Any]
):
    name, code = SAMPLES[sample]
    model = redraw(getattr(transformers, name)(transformers.DeiTConfig(**tiny_fields)))
    model.save_pretrained(tmp_path / "checkpoint")
    transformers.DeiTImageProcessor(size=20, crop_size=16).save_pretrained(tmp_path / "checkpoint")
    rgb(30, 41).save(tmp_path / "picture.png")
    places = {"checkpoint": tmp_path / "checkpoint", "picture": tmp_path / "picture.png"}
    theirs = printed(code.format(library="transformers", **places))
    ours = printed(code.format(library="deit", **places))
    assert ours == theirs
    assert len(ours) > 3
    torch.manual_seed(0)
