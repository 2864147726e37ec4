"""Several candidates trained and compared in one go."""
