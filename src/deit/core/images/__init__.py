"""Image files: which can be read, how, and what their samples mean."""
