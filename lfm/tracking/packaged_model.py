"""The MLflow model as code: MLflow runs this file when it loads a registered model, and nothing is unpickled."""

import warnings
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from lfm.errors import InputError
from lfm.serving.predictor import Predictor
from lfm.serving.request import Limits, of_table, pixels_of


class ServedModel(PythonModel):
    """Hands MLflow's calls to the predictor."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights, once."""
        self.predictor = Predictor(Path(context.artifacts["model"]))

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """A column of images, as base64, bytes of files or arrays -> a row an image (`Predictor.table`)."""
        try:
            request = of_table(model_input, params)
            pixels = pixels_of(request, self.predictor, Limits(len(request.images), total_megapixels=float("inf")))
            unit_ND = self.predictor.features(pixels)
            shares = self.predictor.shares(request.prior, unit_ND)
            answers = self.predictor.answers(unit_ND, request.top, request.new_classes, shares)
        except InputError as error:  # a 400 of the scoring server
            raise MlflowException.invalid_parameter_value(str(error)) from error
        for warning in shares.warnings if shares else ():
            warnings.warn(warning, stacklevel=1)
        return self.predictor.table(answers)


set_model(ServedModel())
