"""Intra-job policies: how a job's logical workers sit on its GPUs. Not built yet."""
