"""The paper: mixup, losses, and what they do to a data set. PyTorch alone."""
