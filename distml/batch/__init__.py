"""Batch prediction: for picture files in this process, for whole data sets on Ray, resumable by parts."""
