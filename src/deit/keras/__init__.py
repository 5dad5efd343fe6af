"""The networks in Keras 3, on TensorFlow, JAX and PyTorch."""
