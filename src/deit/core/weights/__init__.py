"""Weight files: names of tensors, formats, and configurations inferred from shapes."""
