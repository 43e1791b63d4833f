"""The `lfm` command: one file a group of commands."""
