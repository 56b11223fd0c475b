"""The trust gate: the only reader of pickles, and the only caller of torch.load."""
