"""Language models: recurrent, ELMo, BERT, GPT."""

from models.language.bert import BERT
from models.language.classifier import BagOfWords, SequenceClassifier
from models.language.elmo import ELMo
from models.language.gpt import GPT
from models.language.language_model import LanguageModel
from models.language.lstm import LSTM

__all__ = ["BERT", "GPT", "LSTM", "BagOfWords", "ELMo", "LanguageModel", "SequenceClassifier"]
