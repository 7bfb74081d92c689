"""Section 2.2: what makes threads wait for each other, built from one lock."""
