"""Positions to windows. NumPy only."""
