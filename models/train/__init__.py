"""Training: one synchronous step for dense and sparse, its checkpoints, metrics and trainer.

The parts are used from their modules; ``models.train.trainer.train`` puts them together.
"""
