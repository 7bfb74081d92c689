"""The classic problems as programs, each wrong and right; most also on real threads."""

from utils.threads.bugs.pair import Pair
from utils.threads.classics import (
    barber,
    bounded_buffer,
    philosophers,
    readers_writers,
    rendezvous,
)

__all__ = ["PAIRS"]

PAIRS: tuple[Pair, ...] = (
    bounded_buffer.PAIR,
    readers_writers.PAIR,
    philosophers.PAIR,
    barber.PAIR,
    rendezvous.PAIR,
)
