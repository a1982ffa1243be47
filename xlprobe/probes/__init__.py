"""What is measured on an encoder: distances, gradients, and whether they can be trusted."""
