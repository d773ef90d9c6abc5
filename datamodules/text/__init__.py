"""Text: corpora, tokenisers, and batches for language models of every kind."""

from datamodules.text.causal import CausalTextData
from datamodules.text.classification import ClassificationData
from datamodules.text.corpus import TextFiles
from datamodules.text.elmo import ElmoTextData
from datamodules.text.labelled import GlueFiles, LabelledFiles
from datamodules.text.masked import MaskedTextData
from datamodules.text.sample import PythonTopics
from datamodules.text.sample_lines import PythonLines

__all__ = [
    "CausalTextData",
    "ClassificationData",
    "ElmoTextData",
    "GlueFiles",
    "LabelledFiles",
    "MaskedTextData",
    "PythonLines",
    "PythonTopics",
    "TextFiles",
]
