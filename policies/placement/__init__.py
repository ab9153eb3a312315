"""Placement policies: on which GPUs."""
