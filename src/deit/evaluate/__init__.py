"""Scores models on labeled images and writes reports."""
