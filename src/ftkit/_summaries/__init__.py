"""What a model is and what a step costs, to read: text, HTML, picture."""
