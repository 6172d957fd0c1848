"""Objects, their views, and what is rendered of them for training."""
