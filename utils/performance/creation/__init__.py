"""Section 3.1: what a thread costs to create, to keep and to switch."""
