"""Data: reading sources, decoding images, splits, Parquet shards, and feeding them to workers."""
