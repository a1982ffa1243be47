"""The tests, and the benchmarks (`python -m tests.benchmarks`)."""
