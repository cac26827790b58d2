"""The pieces of a study: what they are, what makes them, and how they are done."""
