"""The decoder: loading and bridging it, running it under hooks, its weights, states, scores and texts."""
