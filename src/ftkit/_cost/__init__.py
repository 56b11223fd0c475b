"""What a training step costs, measured without computing it."""
