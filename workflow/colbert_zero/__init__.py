"""ColBERT-Zero as one graph: from raw text to the table, every artifact named by what decides it."""

__version__ = "0.1.0"
