"""Section 2.3: how threads and processes hand data to each other."""
