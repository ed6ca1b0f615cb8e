"""What is said about a warm-up that is too long."""

import pytest
from toy_training import train

LINEAR = dict(type='LinearLR', start_factor=0.01, begin=0)


@pytest.mark.parametrize(
    ('schedule', 'said'),
    [
        (dict(LINEAR, by_epoch=False, end=500), 'warms up for 500 of 12 iterations: shorten it'),
        (dict(LINEAR, by_epoch=False, end=5), 'warms up for 5 of 12 iterations'),
        (
            dict(LINEAR, by_epoch=True, end=1),
            'stays at 0.01 times its full value: in mmengine, a warm-up of one epoch never ends',
        ),
        (dict(LINEAR, by_epoch=True, end=1, convert_to_iter_based=True), 'warms up for 6 of 12 iterations'),
        (dict(LINEAR, by_epoch=False, end=4), None),
        (dict(LINEAR, type='LinearMomentum', by_epoch=False, end=12), None),
        (dict(LINEAR, by_epoch=False, start_factor=1.0, end_factor=0.0, end=12), None),
    ],
)
def test_warm_up(tmp_path, schedule, said):
    train(tmp_path, param_scheduler=[schedule])
    (log,) = tmp_path.glob('2*/2*.log')
    text = log.read_text()
    assert ('The learning rate' in text) == (said is not None)
    assert said is None or said in text
