"""Kubernetes: creating the cluster, submitting and following RayJobs, cluster status (driver)."""
