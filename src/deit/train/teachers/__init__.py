"""Teachers for distillation and caches of their answers."""
