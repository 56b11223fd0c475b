"""Handle a model safely: every tensor in it, changes that can be undone, runs that leave no trace."""
