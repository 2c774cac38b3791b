"""Samples to device batches. torch begins here."""
