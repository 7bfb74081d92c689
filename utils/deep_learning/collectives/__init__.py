"""Ranks that exchange tensors: groups, and the collective operations from scratch."""
