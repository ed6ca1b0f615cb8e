"""Experiments of several trainings; ``tools/analysis_tools/run_experiment.py`` is the command."""
