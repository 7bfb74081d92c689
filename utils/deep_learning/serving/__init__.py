"""An inference engine from scratch: admission, micro-batches, workers, and how to measure it."""
