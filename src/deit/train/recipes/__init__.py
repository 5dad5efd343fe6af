"""Recipes: all settings of a training, their checks and their names."""
