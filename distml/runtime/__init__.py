"""The Ray runtime: connecting, resource plan, environment variables, private APIs."""
