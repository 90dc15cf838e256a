"""Text in domains, and the sampling of tokens from it."""

from moescope.corpora.base import Corpus
from moescope.corpora.batching import Batch, Sampler
from moescope.corpora.document import Document
from moescope.corpora.loading import load_corpus

__all__ = ["Batch", "Corpus", "Document", "Sampler", "load_corpus"]
