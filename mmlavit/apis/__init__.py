"""Predictions on images, from Python."""
