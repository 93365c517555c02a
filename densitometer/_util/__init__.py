"""What the other storeys stand on and what knows nothing of language models."""
