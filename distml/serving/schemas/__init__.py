"""Bodies of the three protocols as OpenAPI shows them; nothing is validated by them at run time.

The parsers of requests are stricter and faster; generated requests hold both together in the tests.
"""
