"""Columns of labels: cells, names of splits, classes."""
