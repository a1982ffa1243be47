"""Editors that steer activations, and what they share."""
