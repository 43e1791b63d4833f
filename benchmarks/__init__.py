"""Commands that print a table: science."""
