"""Exports of trained models: layout, digests, writing, verifying and loading."""
