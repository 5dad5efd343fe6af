"""Shows the curves of a run in the tools that people use: TensorBoard, trackio, Weights & Biases."""
