"""Quantizes models to 8-bit integers, and keeps only what agrees with the original and is faster."""
