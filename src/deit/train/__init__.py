"""Learning: recipes, tasks, teachers and the one training loop."""
