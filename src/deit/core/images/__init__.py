"""Reads image files: formats, limits, and the meaning of pixel values."""
