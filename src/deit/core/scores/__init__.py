"""Numbers about predictions: metrics, intervals, calibration, and how charts of them look."""
