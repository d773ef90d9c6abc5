"""Start a language model from weights that somebody trained."""

import os

from models.language.language_model import LanguageModel
from models.language.transformers_weights import load_weights as load_transformer


def load_weights(network: LanguageModel, source: str | os.PathLike) -> None:
    """Load trained weights into a network, in place; see `models.language.transformers_weights`."""
    load_transformer(network, source)
