"""Releases: images made available, trusted, delivered as the few blocks that differ, and discontinued."""
