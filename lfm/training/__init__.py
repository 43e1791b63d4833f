"""One loop for both stages, its checkpoints, and how it fits into memory."""
