"""Heads that predict for every anchor at once."""
