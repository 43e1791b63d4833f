"""`lfm serve`: a model behind HTTP, in worker processes that a supervisor keeps alive."""
