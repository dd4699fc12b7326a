"""Predictions for whole data sets, and their metrics."""
