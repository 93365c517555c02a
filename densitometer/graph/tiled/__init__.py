"""What only long inputs need: edges tile by tile, never all at once."""
