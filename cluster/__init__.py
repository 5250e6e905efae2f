"""The pipeline on Ray: generation, pretraining under Ray Train and evaluation as one job.

Knows Ray; imports the stages and owns none of their work. Imports no DeepSpeed: `train.engine` does, in the workers.
"""
