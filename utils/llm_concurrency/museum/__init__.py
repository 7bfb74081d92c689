"""Bugs of public engines to switch on, and the invariants that catch them."""
