"""Programs that tests start, each in a process of its own."""
