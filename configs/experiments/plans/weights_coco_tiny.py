# Whether the weights of LaViT-nano help to learn 50 images of COCO by heart, as a sanity check: 50 images teach nothing
# about others.
_base_ = './_base_/weights.py'

title = 'RetinaNet on 50 images of COCO, from the weights of this repository and from scratch'
metric, scale, digits = 'coco/bbox_mAP', 100, 1
columns = dict(train='box AP on these images', test='on 50 others')
names = dict(config='configs/experiments/retinanet_lavit_nano_coco_tiny.py')
_test = 'python tools/test.py {config} {run}/train/'
arms = dict(
    scratch=dict(commands=dict(test=_test + 'iter_150.pth --work-dir {work_dir}')),
    weights=dict(commands=dict(test=_test + 'iter_150.pth --work-dir {work_dir}')),
    long=dict(commands=dict(test=_test + 'iter_450.pth --work-dir {work_dir}')),
    long_weights=dict(commands=dict(test=_test + 'iter_450.pth --work-dir {work_dir}')),
)
