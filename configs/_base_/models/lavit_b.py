# LaViT-B: 28 layers instead of 16 want more drop path.
lavit_b = dict(arch='base', drop_path_rate=0.3)
