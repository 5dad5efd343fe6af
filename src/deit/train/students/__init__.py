"""Students: the models that are trained."""
