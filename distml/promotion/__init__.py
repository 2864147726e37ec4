"""Choosing the champion: who may compete, how each is measured, who wins, and moving the alias."""
