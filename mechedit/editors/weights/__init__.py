"""Editors that change weights, and what they share."""
