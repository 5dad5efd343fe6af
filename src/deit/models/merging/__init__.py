"""Token merging (Bolya et al., arXiv 2210.09461): blocks that merge similar patch tokens, for speed."""
