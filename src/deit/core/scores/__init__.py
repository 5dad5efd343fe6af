"""Computes scores of predictions: metrics, confidence intervals, calibration; and the style of charts."""
