"""What a stranger does with a registered model: TRACKING_URI DATASET. Prints its accuracy on 200 test images."""

import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

if __name__ == "__main__":
    mlflow.set_tracking_uri(sys.argv[1])
    data = Path(sys.argv[2])
    model = mlflow.pyfunc.load_model("models:/fashion-mnist-lt/1")
    images = np.load(data / "test_images.npy")[:200]
    answer = model.predict(pd.DataFrame({"image": list(images)}), params={"top": 2})
    assert list(answer.columns) == ["label", "probability", "shot_group", "zero_shot", "calibrated", "top"]
    assert answer.probability.between(0.1, 1).all() and answer.calibrated.all() and set(answer.top.map(len)) == {2}
    names = json.loads((data / "info.json").read_text())["classes"]
    truth = [names[k] for k in np.load(data / "test_labels.npy")[:200]]
    print("accuracy", (answer.label == truth).mean())
    try:
        model.predict(pd.DataFrame({"image": list(images.astype(np.float32))}))
    except Exception as error:
        print("refused", type(error).__name__)
