"""LFM: text-guided mixup for long-tailed image data."""

__version__ = "0.1.0"
