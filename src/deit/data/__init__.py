"""Data sets: sources, readers, labels, augmentation and batches."""
