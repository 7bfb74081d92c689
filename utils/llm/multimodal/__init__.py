"""A picture as words: soft tokens that a frozen language model reads (S5.3-d)."""
