"""One command per headline figure, each measured beside its peer in the same minutes."""
