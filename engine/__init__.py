"""A training run from start to end, what is made with a trained one, and how commands stop."""
