"""Annotations and predictions as images and videos."""
