"""From prompt to table: what a model says about a fact, under an edit and without it, and the metrics of that."""
