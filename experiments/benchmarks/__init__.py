"""Benchmarks: ratios within one run, never absolute promises. The one room of this package that knows the methods."""
