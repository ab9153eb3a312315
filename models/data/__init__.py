"""The workload's data: a generator with a known Bayes AUC, loaders of public logs, a sampler.

Everything here that is random is a pure function of a seed and an index, so any process can make
any sample of any step without the ones before it.
"""
