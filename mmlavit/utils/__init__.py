"""What several rooms need: command line arguments, data paths, checkpoint files."""
