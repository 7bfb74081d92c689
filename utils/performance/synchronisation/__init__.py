"""Section 3.2: what locks, conditions and semaphores cost, and when."""
