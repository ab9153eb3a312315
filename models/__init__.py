"""The workload: LONGER, its data, its sparse and dense parameters, its serving.

Knows nothing of scheduling or elasticity. Not built yet: the first floor of the project replays
traces, which needs no training.
"""
