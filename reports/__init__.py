"""Everything shown: metrics, figures, HTML report, timeline, comparison.

Reads run directories only, never a live engine.
"""
