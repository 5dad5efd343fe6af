"""Images for learning: where they come from, how they are varied, in which order they come."""
