"""Commands that ask models about images."""
