"""Decides which weights of a run become its model."""
