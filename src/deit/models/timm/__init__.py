"""Models of timm, opened and filled by this package's own readers."""
