"""Whole runs: configuration, plan, run and page."""
