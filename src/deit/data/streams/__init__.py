"""Reads shards that are elsewhere, sample by sample, through a bounded cache on disk."""
