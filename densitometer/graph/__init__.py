"""One forward pass as a graph of edges, the importance of each, and traces of it."""
