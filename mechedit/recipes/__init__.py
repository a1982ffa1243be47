"""Whole runs: what each can be told, its plan, the run, and the summary that its page shows."""
