"""The report of a finished run: one HTML file that holds everything it shows."""
