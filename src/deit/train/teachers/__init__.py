"""Teachers of a distillation and their recorded answers."""
