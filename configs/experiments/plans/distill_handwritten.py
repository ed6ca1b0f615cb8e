# Distillation without labels: the detector of the demo.
_base_ = './_base_/distillation.py'

title = 'Less attention in a trained Mask R-CNN, handwritten scenes'
metric, scale, digits = 'coco/bbox_mAP', 100, 1
columns = dict(test='box AP')
names = dict(
    student='configs/handwritten/mask_rcnn_lavit_nano.py',
    twin='configs/experiments/mask_rcnn_vanilla_nano_handwritten.py',
    trained='{root}/teacher/seed_0/train/epoch_8.pth',
    images='data/handwritten/images/train',
    teacher_iters=800,
    iters=80,
    short='train_cfg.max_epochs=1 train_cfg.val_interval=1',
)
arms = dict(
    # By epochs, as the demo; one of 100 iterations, of which none is lost to a warm-up as long as it.
    scratch=dict(
        title='from scratch, one epoch (100 iterations) with labels',
        commands=dict(test='python tools/test.py {student} --work-dir {work_dir} {run}/train/epoch_1.pth'),
    ),
)
