"""The tasks: what a student learns, and how it is scored."""
