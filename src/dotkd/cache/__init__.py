"""A teacher's logits, kept on disk for every view of a sample (see docs/cache.md)."""
