"""Configurations of models: their fields, checks and files."""
