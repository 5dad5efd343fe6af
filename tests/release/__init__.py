"""Checks of a release for `make release-check`: contents of wheel and sdist, and the list of what it needs (SBOM)."""
