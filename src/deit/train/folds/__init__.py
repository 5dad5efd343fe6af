"""K-fold: every image is answered by a model that did not learn from it."""
