"""The training loops of the models, and what they share."""
