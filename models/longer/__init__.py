"""LONGER (arXiv 2505.04421): network, key-value cache, and operation counts.

Importing a module of it imports torch; ``flops`` alone does not.
"""
