"""Scores of a model on labelled images, and the report of them."""
