"""The real world: devices, worker processes, logical workers, deterministic reduction.

In the making. Device lanes and levels stand, and the engine: ``executor.agent`` runs jobs of
``executor.job`` on workers. It will run the driver of ``policies`` on wall time.
"""
