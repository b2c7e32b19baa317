"""Train a stage of a recipe on the rows of its batch plan.

In: a start model, the batch plan and the rows it names (`shards`, `negatives` or `scores`). Out: the artifact `models`
with `losses.jsonl`; checkpoints in the state folder until the model is published.

Open `train.py` first: the step with the training loop. Then `trainer.py`: one training step and the state that a
checkpoint holds. `stages.py` makes batches and losses, `loader.py` tokenises ahead of time, `gradcache.py` computes the
gradient with the functions of `losses.py` (or `fused.py`), `checkpoints.py` saves and loads. `monitor.py` reports
through `progress_bar.py`, `metrics_log.py` and `evaluator.py`.
"""
