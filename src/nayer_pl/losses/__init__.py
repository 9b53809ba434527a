"""Every loss: tensors in, a scalar out."""
