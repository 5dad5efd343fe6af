"""The vision transformer itself, and its speed on a CPU."""
