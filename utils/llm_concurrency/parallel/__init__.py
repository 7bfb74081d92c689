"""Section 6.1: the same answers from a model that is copied, or cut along one of its dimensions."""
