"""Watching a served model: the log of its requests, and how they differ from what it was trained on."""
