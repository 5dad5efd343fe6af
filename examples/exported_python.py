"""Classifies a photo with an exported model: needs onnxruntime, Pillow and numpy, and neither deit nor PyTorch."""

import ast
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])  # exported/classifier.onnx
names = ast.literal_eval(session.get_modelmeta().custom_metadata_map["names"])
photo = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
probabilities = session.run(None, {"images": np.asarray(photo)[None]})[0][0]
for number in np.argsort(-probabilities)[:3]:
    print(f"{names[number]}: {probabilities[number]:.4f}")
