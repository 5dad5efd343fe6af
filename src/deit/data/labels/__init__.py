"""Reads columns of labels: cells, names of splits, classes."""
