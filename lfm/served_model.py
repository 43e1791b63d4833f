"""The MLflow model as code: MLflow runs this file when it loads a registered model, and nothing is unpickled."""

from pathlib import Path
from typing import Any

from mlflow.models import set_model  # noqa: TID251
from mlflow.pyfunc import PythonModel, PythonModelContext  # noqa: TID251

from lfm.serve import Predictor


class ServedModel(PythonModel):
    """Hands MLflow's calls to the predictor."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights, once."""
        self.predictor = Predictor(Path(context.artifacts["model"]))

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Images (N, H, W[, 3]) uint8 -> label and probability."""
        return self.predictor.predict(model_input)


set_model(ServedModel())
