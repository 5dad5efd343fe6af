"""Reads weight files: names of tensors, formats, and the configuration that the shapes imply."""
