"""Chooses a training for images and a machine, says why, and forecasts how long it takes."""
