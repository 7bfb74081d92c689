"""Many requests in one pass, and the memory that this needs: batches, blocks, prefixes."""
