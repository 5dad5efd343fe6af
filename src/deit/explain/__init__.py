"""Shows where a classifier looked: maps over the image, each with a score for that image."""
