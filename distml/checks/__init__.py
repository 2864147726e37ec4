"""What `doctor` looks at: each question a function from plain values to one answer."""
