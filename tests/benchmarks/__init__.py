"""Benchmarks: ratios within one run, seconds and memory. They measure all four packages, so they stand above them."""
