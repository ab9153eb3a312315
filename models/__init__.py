"""The workload: LONGER, its data, its sparse and dense parameters, its serving.

Knows nothing of scheduling or elasticity, and imports nothing of ours. In the making: what stands
is tested and documented in ``docs/models/``; its command is ``tandem train``.
"""
