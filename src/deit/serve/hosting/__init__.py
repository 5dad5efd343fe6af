"""The models of a server: where they come from, and how they are opened, swapped and closed."""
