"""Many texts under many models, resumable."""
