"""Chapter 1: what concurrency is, what it buys, where it is used.

Modules are imported one by one (`from utils.overview import people`): a process that `race`
starts needs none of them but `work`, and must not load a language model to get it.
"""

__all__ = ["areas", "history", "people", "race", "rates", "work"]
