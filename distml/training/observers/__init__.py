"""Observers of a run's events: the display, the tracking server, Ray's metrics and TensorBoard (driver)."""
