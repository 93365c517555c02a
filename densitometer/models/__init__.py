"""The only folder that knows transformers: loading, layouts of blocks, and running a model."""
