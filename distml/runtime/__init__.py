"""The Ray runtime: connecting, resource plan, process priorities, environment variables, private APIs."""
