"""Training states beside the steps: written in the background, and in parts where the weights are divided."""
