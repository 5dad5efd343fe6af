"""Weight files: names of tensors, formats, and what a file says about the model."""
