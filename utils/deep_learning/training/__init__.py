"""Training one model on several workers: one interface, and a module for each strategy."""
