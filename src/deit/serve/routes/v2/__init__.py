"""The Open Inference Protocol v2: what KServe, Triton and their clients speak."""
