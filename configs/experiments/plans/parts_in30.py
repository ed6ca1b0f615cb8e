# What do the parts of LaViT give, and would something cheaper do as well? The rows of `sizes_in30` in bfloat16 and
# compiled, which takes less time, and a twin with one layer less.
_base_ = './sizes_in30.py'

title = "LaViT-nano's parts and cheaper networks, 30 classes of ImageNet, bfloat16 and compiled"
commands = dict(
    train='python tools/train.py {config} --amp --work-dir {work_dir} '
    '--cfg-options randomness.seed={seed} compile=True {options}'
)
arms = dict(
    shallow=dict(
        title='the twin with one layer less', names=dict(config='configs/experiments/lavit_shallow_nano_in30.py')
    )
)
