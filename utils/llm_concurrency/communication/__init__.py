"""What it costs when those who share a model have to talk."""
