"""Importances, thresholds and runs of long inputs: edges tile by tile, never all at once."""
