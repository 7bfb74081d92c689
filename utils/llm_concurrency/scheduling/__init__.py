"""Experiments on scheduling: the engine's own scheduler, on a virtual clock and on the real one."""
