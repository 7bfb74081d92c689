"""What stands in the way: memory, messages, imbalance, error, consistency."""
