"""Numbers that the plan and the steps share: what one refuses early, the other refuses with the data at hand."""

DEFAULT_DIMENSIONS = 128
"""Of each token's vector, for a late-interaction model that brings no projection."""
DEFAULT_PRECISION = "fp32"
"""Of the multiplications that encode texts for an index of a late-interaction model."""
DEFAULT_FUSION = "normalised"
"""How the candidates of several miners are put in one order."""
DEFAULT_RECALL = 0.95
"""What share of an exact search's documents an approximate one of a miner must find."""
CORPUS_ROLE = "corpus"
"""The role of a collection that is mined in, among the inputs of what is made of its documents."""
MINIMUM_TEXT_TOKENS = 2
"""Tokens of a text that must fit beside prompt, marker and special tokens."""
PLAID_MIN_DOCUMENTS = 100_000
"""From this many documents on, `index: auto` means PLAID, and a collection is too large to evaluate on in a training.
An exact search of fewer takes seconds, without PLAID's variance."""
