# 80,000 iterations, as PVT trains Semantic FPN.
_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=80000)]
train_cfg = dict(by_epoch=False, max_iters=80000, val_interval=16000)

# The learning rate is for (4 GPUs) x (4 images per GPU) = 16.
auto_scale_lr = dict(enable=False, base_batch_size=16)

# A resumed training goes on as if it had not been interrupted: docs/reliability.md.
exact_resume = True
