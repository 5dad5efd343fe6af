"""Runs models on images: engines, predictor, embedder, pipelines."""
