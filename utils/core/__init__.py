"""What every chapter uses and which knows no chapter."""
