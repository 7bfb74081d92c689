"""Where the parameters of a model are, where its time is, and what bounds it."""
