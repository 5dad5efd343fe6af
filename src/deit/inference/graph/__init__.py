"""The network rewritten for inference, and its conversions."""
