# What a 3x schedule puts in the place of Resize, as Swin and PVTv2 do: a shorter side of 480 to 800, in half of the
# images of a crop.
sides = [(side, 1333) for side in range(480, 801, 32)]
multiscale = dict(
    type='RandomChoice',
    transforms=[
        [dict(type='RandomChoiceResize', scales=sides, keep_ratio=True)],
        [
            dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
            dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
            dict(type='RandomChoiceResize', scales=sides, keep_ratio=True),
        ],
    ],
)
