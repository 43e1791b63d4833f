"""One DAG body, a short file for each data set, and what runs or compiles them."""
