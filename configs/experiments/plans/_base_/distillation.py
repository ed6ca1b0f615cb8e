# A teacher trained with labels, and students with less attention that take over its weights and learn from it without
# labels. A plan that has this base says in `names` what stands for {student}, {twin}, {images}, {last} (the teacher's
# last checkpoint), {teacher_iters}, {iters}, {options} (of the distillation) and {short} (options of a training of
# as few iterations).
seeds = [0, 1, 2]
reference = 'teacher'

distill = (
    'python tools/distill.py {student} {twin} {root}/teacher/seed_0/train/{last} --images {images} '
    '--work-dir {work_dir} --cfg-options randomness.seed={seed} {options} --iters '
)
test = 'python tools/test.py {student} --work-dir {work_dir} {run}/'

arms = dict(
    teacher=dict(
        title='teacher, {teacher_iters} iterations with labels',
        seeds=[0],
        commands=dict(
            train='python tools/train.py {twin} --work-dir {work_dir}',
            test='python tools/test.py {twin} --work-dir {work_dir} {run}/train/{last}',
        ),
    ),
    copied=dict(
        title='copied, transforms near the identity',
        needs=['teacher'],
        commands=dict(distill=distill + '1 --fit-images 0', test=test + 'distill/start.pth'),
    ),
    fitted=dict(
        title='copied, transforms fitted',
        needs=['teacher'],
        commands=dict(distill=distill + '1 --fit-images 32', test=test + 'distill/start.pth'),
    ),
    distilled=dict(
        title='copied, fitted, distilled for {iters} iterations without labels',
        needs=['teacher'],
        commands=dict(distill=distill + '{iters} --fit-images 32', test=test + 'distill/iter_{iters}.pth'),
    ),
    unfitted=dict(
        title='copied, distilled for {iters} iterations without labels',
        needs=['teacher'],
        commands=dict(distill=distill + '{iters} --fit-images 0', test=test + 'distill/iter_{iters}.pth'),
    ),
    scratch=dict(
        title='from scratch, {iters} iterations with labels',
        commands=dict(
            train='python tools/train.py {student} --work-dir {work_dir} --cfg-options randomness.seed={seed} {short}',
            test=test + 'train/iter_{iters}.pth',
        ),
    ),
)
