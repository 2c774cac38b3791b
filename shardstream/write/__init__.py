"""Tokens to shards. NumPy only."""
