"""Annotations and predictions as pictures and videos."""
