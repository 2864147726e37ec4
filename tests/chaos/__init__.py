"""Pods of a real cluster killed one after another: opt-in, `python -m tests.chaos --context NAME`.

It needs a cluster on which an overlay of kuberay/ runs, and kubectl. It deletes pods and starts workflows
there, so nothing of it runs by itself; tests/unit/kube/test_chaos.py holds its plan, table and judgement.
"""
