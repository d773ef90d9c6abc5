"""Continue, fill in, score and embed texts in one call."""

from typing import Any

from datamodules.text.making import from_state
from models.language.language_model import LanguageModel
from models.language.predictors import Predictor, predictor_for


def language_predictor(network: LanguageModel, data: dict[str, Any]) -> Predictor:
    """A language model with the tokeniser that it was trained with; see `inference.load`.

    Args:
        network: in evaluation mode.
        data: the description of the data it was trained with: `tokenizer`.
    """
    return predictor_for(network, from_state(data["tokenizer"]))
