"""The models that the steps compute with, and the random base to start from.

In: a model folder (a base, or the model of an earlier stage) and texts.
Out: token embeddings (`colbert`), one vector per text (`encoders`), and a small base with random weights
(`random_base`), the only artifact that this room makes.

Open `colbert.py` first: it loads, saves and tokenises for training and evaluation. `encoders.py` is for
mining and for dense baselines.
"""
