"""Text: corpora, tokenisers, and batches for language models of every kind."""

from datamodules.text.causal import CausalTextData
from datamodules.text.corpus import TextFiles
from datamodules.text.elmo import ElmoTextData
from datamodules.text.masked import MaskedTextData
from datamodules.text.sample import PythonTopics

__all__ = ["CausalTextData", "ElmoTextData", "MaskedTextData", "PythonTopics", "TextFiles"]
