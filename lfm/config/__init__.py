"""Every value of a run in one typed place: its schema, the presets, and how values are changed by name."""
