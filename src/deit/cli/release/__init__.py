"""Commands that bring models to other places and forms."""
