"""What decides a training: recipes, their values and names."""
