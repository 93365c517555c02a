"""How important each edge is: from norms, from gradients, by search."""
