"""Names of foreign checkpoints turned into ours."""
