"""Names the files of a model directory. docs/architecture.md says what each of them holds."""

CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"
PROCESSOR_NAME = "processor_config.json"  # of transformers 5: several processors in one file
WEIGHTS_NAME = "model.safetensors"
PICKLE_NAME = "pytorch_model.bin"
CARD_NAME = "README.md"
IMAGES_NAME = "images.npy"
CALIBRATION_NAME = "calibration.json"
CLOUDS_NAME = "calibration.safetensors"  # features of the training images, for outliers

# Written by a training.
TRAINING_NAME = "training.json"
RECIPE_NAME = "recipe.yaml"
STATE_NAME = "state"
FOLDS_NAME = "folds"  # a folder of the runs of a k-fold training
LAST_NAME = "last"  # a model directory: the weights after the last step, where the model has those of the best
HISTORY_NAME, HISTORY_TABLE_NAME = "metrics.jsonl", "metrics.csv"
CURVES_NAME = "curves.png"
LOGGER_NAME = "logger.json"  # names of the run at TensorBoard, trackio, ...
RECONSTRUCTION_NAME = "reconstruction.png"
PLAN_NAME = "plan.json"  # why a planned training is as it is, and how long it takes
TEACHER_NAME = "teacher"  # a folder: the run of the teacher that a planned training begins with
PICTURES_NAME = "pictures"  # a folder of earlier reconstructions

# Written by an export. Models take pixels, which is what engines run; classifiers take images.
EXPORT_NAME = "export.json"  # what was exported, from what, and how it was checked
ONNX_NAME = "model.onnx"  # pixels -> logits
ONNX_CLASSIFIER_NAME = "classifier.onnx"  # images -> probabilities
OPENVINO_NAME, OPENVINO_WEIGHTS_NAME = "openvino_model.xml", "openvino_model.bin"
OPENVINO_CLASSIFIER_NAME, OPENVINO_CLASSIFIER_WEIGHTS_NAME = "openvino_classifier.xml", "openvino_classifier.bin"
TORCH_NAME, TORCH_CLASSIFIER_NAME = "model.pt2", "classifier.pt2"
EXPORTED_FILES = (
    ONNX_NAME,
    ONNX_CLASSIFIER_NAME,
    OPENVINO_NAME,
    OPENVINO_WEIGHTS_NAME,
    OPENVINO_CLASSIFIER_NAME,
    OPENVINO_CLASSIFIER_WEIGHTS_NAME,
    TORCH_NAME,
    TORCH_CLASSIFIER_NAME,
)
