"""Find, replace and extend a model's head; adapt its input."""
