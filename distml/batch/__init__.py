"""Predictions for picture files in this process, and for data sets on Ray, in parts that are done once."""
