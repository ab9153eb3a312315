"""The workload: LONGER, its data, its sparse and dense parameters, its serving.

Knows nothing of scheduling or elasticity, and imports nothing of ours. Its commands are
``tandem train``, ``tandem serve`` and ``tandem bench model``; its pages are in ``docs/models/``.
"""
