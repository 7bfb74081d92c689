"""Section 2.1: threads as the system and Python see them."""
