"""The article's threaded training program: its defects shown, and each mended in turn."""
