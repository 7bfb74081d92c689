"""Side-by-side measurements: each module's `figures()` yields lines that say what was measured."""
