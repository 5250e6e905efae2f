"""Making datasets: which shards are missing, one shard, and many actors that write them.

Ray is imported where actors are started, and nowhere else; trajectories never pass through its object store.
"""
