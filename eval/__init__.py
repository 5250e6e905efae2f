"""What a trained run is worth: regret in fresh environments beside teacher and baselines, and held-out imitation.

Reads a run directory and writes its results.json, figures and board; never imports the other stages, Ray or DeepSpeed.
"""
