"""Serving: an HTTP and gRPC endpoint on Ray Serve for the registered models."""
