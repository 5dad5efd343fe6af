"""What a DeiT is, without any deep-learning framework: configuration, files, pixels, numbers."""
