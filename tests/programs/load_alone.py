"""Loads the model in FOLDER as where our package is not installed, and prints where the modules of lfm came from."""

import json
import sys
from pathlib import Path

import mlflow

if __name__ == "__main__":
    for finder in [one for one in sys.meta_path if "editable" in repr(one)]:
        sys.meta_path.remove(finder)
    sys.path = [place for place in sys.path if place and not (Path(place) / "components").is_dir()]
    model = mlflow.pyfunc.load_model(sys.argv[1])
    model.predict(model.input_example, params={"new_classes": ["umbrella"]})
    print(json.dumps([module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "lfm"]))
