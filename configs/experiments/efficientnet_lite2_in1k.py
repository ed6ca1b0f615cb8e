# The teacher of the classifiers: timm's EfficientNet-Lite2, trained on ImageNet-1k; here for images of 64 to 84 px.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmlavit'], allow_failed_imports=False)

model = dict(
    type='TimmClassifier',
    model_name='tf_efficientnet_lite2',
    data_preprocessor=dict(num_classes=1000, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
)
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(160, 160), interpolation='bicubic'),
            dict(type='PackInputs'),
        ]
    )
)
