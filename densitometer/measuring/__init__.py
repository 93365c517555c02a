"""One text, from its tokens to its computation density."""
