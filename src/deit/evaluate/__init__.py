"""Scores models on labelled images and writes reports."""
