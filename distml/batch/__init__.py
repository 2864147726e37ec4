"""Predictions for whole data sets: parts that are done once, on as many processes as there are cores."""
