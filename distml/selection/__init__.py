"""Choosing a model: sweeps over candidates, promotion to champion, and the pipeline around both."""
