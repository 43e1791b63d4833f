"""Where images and labels come from: one loader a data set, and what the loaders share."""
