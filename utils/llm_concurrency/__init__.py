"""Chapter 6: what can run at the same time when a language model answers, and what cannot."""
