"""From an image to normalized pixel values, without a framework."""
