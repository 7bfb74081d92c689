"""4.1.2 One model on several workers: its layers cut across (tensor) or handed out (pipeline)."""
