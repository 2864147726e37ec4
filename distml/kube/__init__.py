"""Kubernetes: the API server, Ray jobs as KubeRay and Ray see them, and bringing a cluster up (driver)."""
