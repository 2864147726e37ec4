"""Data: where rows come from, and how they reach a worker."""
