"""Section 3.4: how much faster more workers can be."""
