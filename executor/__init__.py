"""The real world: devices, worker processes, logical workers, deterministic reduction.

Not built yet: it will run the driver of ``policies`` on wall time.
"""
