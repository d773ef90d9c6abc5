"""The second stage: features of regions, heads, cascades."""
