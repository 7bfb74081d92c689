"""How large models are, what that costs, and what replicas and hardware change about it."""
