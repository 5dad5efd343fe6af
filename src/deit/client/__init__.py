"""Asks a `deit serve` somewhere else about images, with no framework on this side (httpx2)."""
