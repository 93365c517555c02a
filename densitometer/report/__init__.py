"""Report of a study: claims, figures and one HTML page."""
