"""What a training step costs: time, memory, operations, bytes, on one device.

``workload`` says what is measured, ``measure`` measures it; ``tandem bench model`` and
``benchmarks/model.py`` are both made of these. Importing a module of it imports torch.
"""
