"""One training loop, and what it trains by: pre-training, alignment, fine-tuning."""
