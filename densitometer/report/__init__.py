"""A study as claims, figures and one page."""
