"""Helpers that are no part of a model: the environment, checkpoints, counting, converting."""
