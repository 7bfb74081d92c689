"""One model on one machine: threads, vector instructions, fewer bits."""
