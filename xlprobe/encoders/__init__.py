"""The encoder: its batches, its states by hooks, the role of each parameter."""
