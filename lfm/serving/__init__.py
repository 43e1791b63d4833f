"""A registered model that answers: the predictor, what clients may send, the HTTP server."""
