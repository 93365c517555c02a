"""The only room that knows transformers: loading, block layouts, and the adapter that runs a model."""
