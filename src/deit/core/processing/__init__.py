"""Turns images into normalized pixel values, without a framework."""
