"""What a training does about losses and gradients that are not finite, and about losses that stand out."""
