"""What users bring (priors, simulations, samples), checked and as tensors."""
