"""Utilities of all other packages, which know nothing of language models."""
