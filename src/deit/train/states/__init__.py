"""Training states that are written beside the steps."""
