"""A model on a split: predictions, metrics, calibration, what a report needs, and whether it may be promoted."""
