# A teacher trained with labels, and students with less attention that take over its weights and learn from it without
# labels. A plan that has this base says in `names` what stands for {student}, {twin}, {trained} (the twin's
# checkpoint), {images}, {teacher_iters}, {iters} and {short} (options of a training of as few iterations), and if
# needed for {options} and {amp} (of the distillation) and {control} (options of a student without less attention).
seeds = [0, 1, 2]
reference = 'teacher'
names = dict(control='model.backbone.type=mmlavit.analysis.controls.LaViTControl', options='', amp='')

distill = (
    'python tools/distill.py {student} {twin} {trained} --images {images} --work-dir {work_dir} '
    '--cfg-options randomness.seed={seed} {options} '
)
test_teacher = 'python tools/test.py {twin} --work-dir {work_dir} {trained}'
test = 'python tools/test.py {student} --work-dir {work_dir} {run}/'

arms = dict(
    teacher=dict(
        title='teacher, {teacher_iters} iterations with labels',
        seeds=[0],
        commands=dict(train='python tools/train.py {twin} --work-dir {work_dir}', test=test_teacher),
    ),
    copied=dict(
        title='copied, transforms near the identity',
        needs=['teacher'],
        commands=dict(distill=distill + '--iters 1 --fit-images 0', test=test + 'distill/start.pth'),
    ),
    fitted=dict(
        title='copied, transforms fitted',
        needs=['teacher'],
        commands=dict(distill=distill + '--iters 1 --fit-images 32', test=test + 'distill/start.pth'),
    ),
    distilled=dict(
        title='copied, fitted, distilled for {iters} iterations without labels',
        needs=['teacher'],
        commands=dict(
            distill=distill + '--iters {iters} {amp} --fit-images 32', test=test + 'distill/iter_{iters}.pth'
        ),
    ),
    unfitted=dict(
        title='copied, distilled for {iters} iterations without labels',
        needs=['teacher'],
        commands=dict(distill=distill + '--iters {iters} {amp} --fit-images 0', test=test + 'distill/iter_{iters}.pth'),
    ),
    # Would the same training teach a student as much that has something cheaper in these layers?
    **{
        f'distilled_{later}': dict(
            title=f'distilled for {{iters}} iterations with {title} in the place of less attention',
            needs=['teacher'],
            commands=dict(
                distill=f'{distill}{{control}} model.backbone.later={later} --iters {{iters}} {{amp}} --fit-images 0',
                test=f'{test}distill/iter_{{iters}}.pth --cfg-options {{control}} model.backbone.later={later}',
            ),
        )
        for later, title in dict(shared='shared scores', uniform='uniform attention', none='no attention').items()
    },
    scratch=dict(
        title='from scratch, {iters} iterations with labels',
        commands=dict(
            train='python tools/train.py {student} --work-dir {work_dir} --cfg-options randomness.seed={seed} {short}',
            test=test + 'train/iter_{iters}.pth',
        ),
    ),
)
