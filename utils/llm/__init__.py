"""Chapter 5: a language model from scratch, what it computes, and what it is made of."""
