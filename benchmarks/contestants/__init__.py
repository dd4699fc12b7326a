"""Contestants: one file for each library that runs the model, and the registry of all."""
