"""Code of transformers' pages and of ours, run on model directories in the contract and for orders of imports."""

from __future__ import annotations

MODELS = {
    "model": "DeiTModel",
    "masked": "DeiTForMaskedImageModeling",
    "classifier": "DeiTForImageClassification",
    "teacher": "DeiTForImageClassificationWithTeacher",
}
# The samples of transformers' pages: a PIL image, the Auto class, tensors of TensorFlow, each class, argmax by tf.math.
SAMPLES = """
import tensorflow as tf
from PIL import Image
from deit import AutoImageProcessor, TFDeiTModel
from deit import TFDeiTForImageClassification, TFDeiTForImageClassificationWithTeacher, TFDeiTForMaskedImageModeling

image = Image.open(place + "/image.png")
wanted = dict(np.load(place + "/wanted.npz"))
tolerance = 1e-4 if wanted_processor == "DeiTImageProcessor" else 2e-2
for name in names:
    image_processor = AutoImageProcessor.from_pretrained(place + "/" + name)
    assert type(image_processor).__name__ == wanted_processor, type(image_processor)
    inputs = image_processor(images=image, return_tensors="tf")
    assert isinstance(inputs.pixel_values, tf.Tensor)
    if name == "model":
        found = TFDeiTModel.from_pretrained(place + "/model")(**inputs).last_hidden_state
    elif name == "masked":
        model = TFDeiTForMaskedImageModeling.from_pretrained(place + "/masked")
        num_patches = (model.config.image_size // model.config.patch_size) ** 2
        mask = tf.cast(tf.random.uniform((1, num_patches), minval=0, maxval=2, dtype=tf.int32), tf.bool)
        outputs = model(inputs.pixel_values, bool_masked_pos=mask)
        assert np.isfinite(float(outputs.loss)) and list(outputs.reconstruction.shape) == [1, 3, 32, 32]
        found = model(inputs.pixel_values, bool_masked_pos=tf.zeros((1, num_patches))).reconstruction
    else:
        kind = TFDeiTForImageClassification if name == "classifier" else TFDeiTForImageClassificationWithTeacher
        model = kind.from_pretrained(place + "/" + name)
        found = model(**inputs).logits
        predicted_class_idx = tf.math.argmax(found, axis=-1)[0]
        assert int(predicted_class_idx) == wanted[name].argmax()
        assert model.config.id2label[int(predicted_class_idx)].startswith("LABEL_")
    np.testing.assert_allclose(found.numpy(), wanted[name], atol=tolerance)
"""
ON_ARRAYS = """
import deit
from PIL import Image
processor = deit.AutoImageProcessor.from_pretrained(place + "/classifier")
assert type(processor).__name__ == "DeiTImageProcessor"
inputs = processor(Image.open(place + "/image.png"), return_tensors="np")
model = deit.TFDeiTForImageClassification.from_pretrained(place + "/classifier")
import keras
found = keras.ops.convert_to_numpy(model(**inputs).logits)
np.testing.assert_allclose(found, np.load(place + "/wanted.npz")["classifier"], atol=1e-4)
"""
REFUSED = """
import deit
try:
    deit.AutoImageProcessor.from_pretrained(place + "/model", backend="torchvision")
except ModuleNotFoundError as error:
    assert "Install it with: pip install" in str(error) and 'backend="pil"' in str(error), error
else:
    raise AssertionError("torchvision is hidden")
"""
PILLOW, FAST = 'wanted_processor = "DeiTImageProcessor"\n', 'wanted_processor = "DeiTImageProcessorFast"\n'
ALL, ONE = f"names = {tuple(MODELS)}\n", 'names = ("teacher",)\n'
