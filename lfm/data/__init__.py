"""Images and labels: sources, long-tailed subsets, the on-disk artifact, the fast path to the device."""
