"""Training: what runs on a rank, and the driver's side of it."""
