"""What runs a model: one file for each engine, and a table to choose from."""
