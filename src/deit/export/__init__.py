"""Writes models that run without this package, and checks each against the original."""
