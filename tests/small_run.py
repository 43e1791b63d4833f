"""A preset made small: a run of seconds."""

PRESET = "fashion-mnist-lt"
SMALL = {
    "data.verify": False, "data.max_per_class": 40, "data.imbalance": 4, "data.val_per_class": 5, "shots.many": 30,
    "stage1.epochs": 1, "stage2.epochs": 1, "train.validate_every": 0,
}  # fmt: skip
