"""How to measure: timing, the environment, fresh processes, the cost of a graph."""
