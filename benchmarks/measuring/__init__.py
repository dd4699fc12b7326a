"""Methods of measurement: timing, the environment, fresh processes, the cost of a graph."""
