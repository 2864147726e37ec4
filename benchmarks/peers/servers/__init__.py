"""Servers that answer `POST /predict` with one model, each as its documentation shows it.

MLServer answers at the path of its own protocol. They run in an environment of their own
(`requirements/peers.txt`) and know nothing of distml: the path of the model, a `.keras` file that takes uint8
images [N, 28, 28, 1], is in `$MODEL`.
"""
