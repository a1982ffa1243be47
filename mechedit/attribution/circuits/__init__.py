"""Which units switch the best neurons on, the graph of it, and where its heads look."""
