"""How data lie where users have them, a module a format.

A new format is entered in `data.opening` (what detects and opens it), in the formats of `config.schema`, and
in `batch.parts` where whole data sets of it are predicted.
"""
