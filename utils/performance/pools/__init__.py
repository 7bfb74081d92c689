"""Section 3.1: threads that are created once and used many times."""
