"""Section 3.5: how long work waits for a worker."""
