"""From a model and images to answers."""
