"""Helpers for every room: files, threads, CPU cores, checks of fields."""
