"""A model, handled safely: every tensor in it, changes that can be taken back, runs that leave no trace."""
