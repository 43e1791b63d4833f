"""Image and text towers: by name, with their weights, as class embeddings, and as the model that trains."""
