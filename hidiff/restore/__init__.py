"""Photographs of one's own: restoring them, and looking at the result."""
