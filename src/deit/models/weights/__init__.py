"""Weights of PyTorch models: reading, loading, initializing."""
