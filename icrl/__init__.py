"""The science: environments, algorithms, rollouts, attention, the transformer, and the two contracts on disk.

Knows neither Ray nor DeepSpeed. The stages (`data_gen`, `train`, `eval`) meet here and never import each other.
"""
