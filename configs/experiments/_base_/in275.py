# 275 classes of ImageNet: 500 images each of 100 classes, 84x84, and 100 images each of 175, 64x64; 50 images each of
# the 100 classes for validation. Trained with labels and with a teacher's scores.
data_root = 'data/in275/'
# Names of WordNet, in the order of data/in275/classes.txt.
classes = [
    'goldfish', 'house finch', 'robin', 'European fire salamander', 'bullfrog', 'tailed frog', 'American alligator',
    'triceratops', 'boa constrictor', 'green mamba', 'trilobite', 'harvestman', 'scorpion', 'black widow',
    'tarantula', 'centipede', 'toucan', 'goose', 'koala', 'jellyfish', 'brain coral', 'nematode', 'snail', 'slug',
    'sea slug', 'king crab', 'American lobster', 'spiny lobster', 'black stork', 'king penguin', 'albatross',
    'dugong', 'Chihuahua', 'Walker hound', 'Ibizan hound', 'Saluki', 'Yorkshire terrier', 'golden retriever',
    'Labrador retriever', 'Gordon setter', 'komondor', 'German shepherd', 'boxer', 'Tibetan mastiff',
    'French bulldog', 'malamute', 'dalmatian', 'Newfoundland', 'miniature poodle', 'standard poodle', 'white wolf',
    'African hunting dog', 'Arctic fox', 'tabby', 'Persian cat', 'Egyptian cat', 'cougar', 'lion', 'brown bear',
    'meerkat', 'ladybug', 'rhinoceros beetle', 'fly', 'bee', 'ant', 'grasshopper', 'walking stick', 'cockroach',
    'mantis', 'dragonfly', 'monarch', 'sulphur butterfly', 'sea cucumber', 'guinea pig', 'hog', 'ox', 'bison',
    'bighorn', 'gazelle', 'Arabian camel', 'black-footed ferret', 'three-toed sloth', 'orangutan', 'chimpanzee',
    'baboon', 'African elephant', 'lesser panda', 'rock beauty', 'abacus', 'academic gown', 'aircraft carrier',
    'altar', 'apron', 'ashcan', 'backpack', 'bannister', 'barbershop', 'barn', 'barrel', 'basketball', 'bathtub',
    'beach wagon', 'beacon', 'beaker', 'beer bottle', 'bikini', 'binoculars', 'birdhouse', 'bookshop', 'bow tie',
    'brass', 'broom', 'bucket', 'bullet train', 'butcher shop', 'candle', 'cannon', 'cardigan', 'carousel', 'carton',
    'cash machine', 'catamaran', 'CD player', 'chain', 'chest', 'chime', 'Christmas stocking', 'cliff dwelling',
    'clog', 'cocktail shaker', 'combination lock', 'computer keyboard', 'confectionery', 'convertible', 'crane',
    'crate', 'cuirass', 'dam', 'desk', 'dining table', 'dishrag', 'dome', 'drumstick', 'dumbbell', 'electric guitar',
    'file', 'fire screen', 'flagpole', 'fountain', 'freight car', 'frying pan', 'fur coat', 'garbage truck',
    'gasmask', 'go-kart', 'gondola', 'hair slide', 'holster', 'horizontal bar', 'hourglass', 'iPod', 'jinrikisha',
    'kimono', 'lampshade', 'lawn mower', 'lifeboat', 'limousine', 'lipstick', 'magnetic compass', 'maypole',
    'military uniform', 'miniskirt', 'missile', 'mixing bowl', 'moving van', 'nail', 'neck brace', 'obelisk', 'oboe',
    'organ', 'parallel bars', 'parking meter', 'pay-phone', 'pencil box', 'photocopier', 'picket fence',
    'pill bottle', 'plunger', 'pole', 'police van', 'poncho', 'pop bottle', "potter's wheel", 'prayer rug',
    'projectile', 'punching bag', 'reel', 'refrigerator', 'remote control', 'rocking chair', 'rugby ball', 'sandal',
    'school bus', 'scoreboard', 'sewing machine', 'slot', 'snorkel', 'sock', 'solar dish', 'sombrero', 'space heater',
    'spider web', 'sports car', 'stage', 'steel arch bridge', 'stopwatch', 'sunglasses', 'suspension bridge',
    'swimming trunks', 'syringe', 'tank', 'teapot', 'teddy', 'thatch', 'theater curtain', 'tile roof', 'tobacco shop',
    'torch', 'tractor', 'triumphal arch', 'trolleybus', 'turnstile', 'umbrella', 'unicycle', 'upright', 'vase',
    'vestment', 'viaduct', 'volleyball', 'water jug', 'water tower', 'wok', 'wooden spoon', 'worm fence', 'yawl',
    'comic book', 'street sign', 'plate', 'guacamole', 'consomme', 'trifle', 'ice cream', 'ice lolly', 'pretzel',
    'hotdog', 'mashed potato', 'cauliflower', 'bell pepper', 'mushroom', 'orange', 'lemon', 'banana', 'pomegranate',
    'meat loaf', 'pizza', 'potpie', 'espresso', 'alp', 'cliff', 'coral reef', 'lakeside', 'seashore', 'acorn',
    'bolete', 'ear',
]  # fmt: skip

# Run once for each image; crops and flips are drawn on the device.
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(84, 84), interpolation='bicubic')]
teacher = dict(
    type='mmlavit.datasets.teacher_scores.AddTeacherScores',
    file=data_root + 'train_scores.npz',
    root=data_root + 'train',
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), interpolation='bicubic'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    collate_fn=dict(type='mmlavit.datasets.decoded.keep_batch'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmlavit.datasets.decoded.DecodedImages',
        cache=data_root + 'decoded',
        metainfo=dict(classes=classes),
        data_root=data_root,
        data_prefix='train',
        ann_file='train.txt',
        pipeline=train_pipeline,
        targets=[teacher],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=2,
    persistent_workers=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        metainfo=dict(classes=classes),
        data_root=data_root,
        data_prefix='val',
        ann_file='val.txt',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
