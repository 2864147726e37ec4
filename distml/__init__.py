"""distml: data, a Keras model and some machines in; a tracked, selected and served model out.

Importing this package does nothing: no input or output, no logging set-up, no environment writes.
"""

__version__ = "0.1.0"
