"""What a model costs and how a training went: multiply-adds, times, curves."""
