"""5.1: what a language model computes: a probability for every token that could come next."""
