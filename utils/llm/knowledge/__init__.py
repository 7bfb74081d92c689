"""Knowledge beside the model: find the note that answers, and put it into the prompt (S5.3-e)."""
