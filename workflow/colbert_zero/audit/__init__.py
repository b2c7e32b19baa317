"""Whether a number can be believed: from a cell of the table back to the bytes and the code that it came from.

In: specs, manifests and files of a study's artifacts, its config, and the code that is there now.
Out: findings, chains, differences and verdicts, for people and as JSON; nothing here changes an artifact.

Open `verify.py` first. Each command of `colbert-zero` has a module of its name, with `add_options` and `run`.
"""
