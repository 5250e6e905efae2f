"""Pretraining: batches from a dataset, DeepSpeed, the loop and its checkpoints.

Knows no Ray: whoever hosts the loop hands it three hooks. DeepSpeed is imported by `train.engine` alone.
"""
