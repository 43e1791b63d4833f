"""Folders that are complete or absent, the store that they are named in by content, S3."""
