"""How data lie where users have them, a module a format."""
