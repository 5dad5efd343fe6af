"""The demo: the whole journey on real images that come with a dependency."""
