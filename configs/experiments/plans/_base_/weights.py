# The same training from scratch and from the weights of this repository, and both for three times as long. A plan that
# has this base says in `names` what stands for {config}.
seeds = [0, 1, 2]
reference = 'scratch'
names = dict(init='model.backbone.init_cfg.checkpoint=mmlavit://lavit_nano_in275')

train = 'python tools/train.py {config} --work-dir {work_dir} --cfg-options randomness.seed={seed} '
short = 'train_cfg.max_iters=150 train_cfg.val_interval=75 param_scheduler.1.end=150'
long = 'train_cfg.max_iters=450 train_cfg.val_interval=75 param_scheduler.1.end=450'
arms = dict(
    scratch=dict(title='from scratch, 150 iterations', commands=dict(train=train + short)),
    weights=dict(title='from our weights, 150 iterations', commands=dict(train=train + short + ' {init}')),
    long=dict(title='from scratch, 450 iterations', commands=dict(train=train + long)),
    long_weights=dict(title='from our weights, 450 iterations', commands=dict(train=train + long + ' {init}')),
)
