"""Readers of data sets: one file for each kind."""
