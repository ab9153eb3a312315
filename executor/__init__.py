"""The real world: devices, worker processes, logical workers, deterministic reduction.

In the making. Device lanes stand: ``executor.devices`` and ``executor.machine``. It will run the
driver of ``policies`` on wall time.
"""
