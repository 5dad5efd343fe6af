"""Search for image files, and caches of their checks and hashes."""
