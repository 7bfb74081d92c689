"""The engine: many requests share one language model, a step at a time."""
