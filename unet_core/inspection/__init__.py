"""A data set looked at before it is trained on: its faults, its statistics, some of its images."""
