"""Chapter 3: what threads cost, and how to spend them."""
