"""Prioritized replay: ring storage, sum tree, rate limiter, and the shard that joins them."""
