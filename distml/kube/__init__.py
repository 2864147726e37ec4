"""Kubernetes: creating the cluster, submitting and following RayJobs, cluster status (driver).

Manifests, the Argo workflow and its deadlines are not Python: they lie in `kuberay/`.
"""
