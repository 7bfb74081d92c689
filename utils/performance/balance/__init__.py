"""Section 3.3: which worker does which task, on a virtual clock and on real workers."""
