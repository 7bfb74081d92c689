"""Feeding the model: how batches are made while it computes."""
