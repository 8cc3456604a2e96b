from collections.abc import Callable

import pytest
from tests.predicted import predictions_of, random_predictions

from steelsight.evaluation.predictions import Predictions


@pytest.fixture(scope="session")
def make() -> Callable[..., Predictions]:
    return predictions_of


@pytest.fixture(scope="session")
def random_ones() -> Callable[..., Predictions]:
    return random_predictions
