"""fp16 and int8 copies of a graph, and the gate that each has to pass."""
