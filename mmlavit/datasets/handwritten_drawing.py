"""Drawing for the handwritten scenes: real scanned digits as ink on real photographs.

Everything random is drawn from the generator that the caller passes in; nothing here reads or
writes files. Images are RGB, (height, width, 3), uint8; boxes and sizes are in pixels.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np

from mmlavit.errors import ConfigError

SPLITS = ('train', 'val')
NUM_CLASSES = 10

# Each photograph is 640 px wide and is cut once, so that no pixel is seen in both splits. The
# cut runs through the pagoda's lake and through the petals of the flower: each side has both
# plain and busy parts. The 8 px between them keep JPEG blocks apart.
BACKGROUND_COLUMNS = {'train': (0, 396), 'val': (404, 640)}
VAL_FRACTION = 0.2

# More would turn a 6 into something between 6 and 9.
MAX_ROTATION = 25.0
MAX_SHEAR = 0.15
MAX_STRETCH = 1.12

# An earlier digit must keep this part of its ink when a later one is drawn over it: less, and
# people cannot name it any more.
MIN_VISIBLE = 0.8
PLACEMENT_TRIES = 40

# Ink is accepted when its luma differs by MIN_CONTRAST (of 255) from CONTRAST_SHARE of the pixels
# around it.
MIN_CONTRAST = 60
CONTRAST_SHARE = 0.95
CONTRAST_TRIES = 6  # places that are looked at
INK_CANDIDATES = 24  # colours that are looked at in each
RGB_TO_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

CELL = 8  # pixels per cell of the 8x8 scan in the enlarged field


@dataclass(frozen=True)
class Sources:
    """The real data that everything is made from.

    Args:
        scans (np.ndarray): (N, 8, 8) float32, ink per cell from 0 to 1.
        labels (np.ndarray): (N,) int, the digit that was written.
        photos (dict[str, np.ndarray]): File name to (H, W, 3) uint8 RGB.
        pools (dict[str, list[np.ndarray]]): Split to ten int arrays, the indices into ``scans`` that the split may use.
    """

    scans: np.ndarray
    labels: np.ndarray
    photos: dict[str, np.ndarray]
    pools: dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class Instance:
    """One digit of a scene.

    Args:
        label (int): The digit, 0 to 9.
        scan (int): Its index into ``Sources.scans``.
        mask (np.ndarray): (H, W) bool, the visible part of its ink.
    """

    label: int
    scan: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A drawn image with everything that is known about it.

    Args:
        image (np.ndarray): (H, W, 3) uint8 RGB.
        instances (list[Instance]): In drawing order; their masks do not overlap.
        photo (str): File name of the photograph in the background.
        crop (tuple[int, int, int, int]): (x, y, width, height) of the background in that photograph.
    """

    image: np.ndarray
    instances: list[Instance]
    photo: str
    crop: tuple[int, int, int, int]


def load_sources() -> Sources:
    """Read the digits and photographs that scikit-learn ships; nothing is downloaded.

    Raises:
        ConfigError: scikit-learn (or Pillow, which it needs for photographs) is missing.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images

        digits, samples = load_digits(), load_sample_images()
    except ImportError as error:
        raise ConfigError(
            f'the handwritten scenes are made from data inside scikit-learn, which cannot be '
            f'imported ({" ".join(str(error).split())}): run `pip install scikit-learn pillow`'
        ) from error
    names = [name.replace('\\', '/').rsplit('/', 1)[-1] for name in samples.filenames]
    return Sources(
        scans=(digits.images / 16).astype(np.float32),
        labels=digits.target,
        photos=dict(zip(names, samples.images, strict=True)),
        pools=split_scans(digits.images, digits.target),
    )


def split_scans(scans: np.ndarray, labels: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Divide the scans of each digit between train and val.

    The split depends on nothing but the scans: neither on the seed nor on their order, so no
    validation set ever holds a digit that another dataset of this generator trained on. Identical
    scans count as one and stay together.

    Args:
        scans (np.ndarray): (N, 8, 8) array.
        labels (np.ndarray): (N,) int array of values 0 to 9.

    Returns:
        dict[str, list[np.ndarray]]: 'train' and 'val', each with ten sorted int arrays of indices into ``scans``.
    """
    twins: dict[str, list[int]] = defaultdict(list)
    for index, scan in enumerate(scans):
        twins[hashlib.sha256(scan.astype(np.uint8).tobytes()).hexdigest()].append(index)
    pools: dict[str, list[list[int]]] = {s: [[] for _ in range(NUM_CLASSES)] for s in SPLITS}
    for digit in range(NUM_CLASSES):
        groups = [twins[key] for key in sorted(twins) if labels[twins[key][0]] == digit]
        num_val = round(VAL_FRACTION * len(groups))
        for rank, group in enumerate(groups):
            for index in group:
                pools['val' if rank < num_val else 'train'][labels[index]].append(index)
    return {s: [np.sort(np.array(p, dtype=int)) for p in pools[s]] for s in SPLITS}


def draw_scene(
    sources: Sources,
    split: str,
    digits: np.ndarray,
    size: int,
    digit_size: tuple[float, float],
    rng: np.random.Generator,
) -> Scene:
    """Draw digits at random places of a random background, later ones over earlier ones.

    Args:
        sources (Sources): Where scans and photographs come from.
        split (str): 'train' or 'val'; chooses the scans and the side of the photographs.
        digits (np.ndarray): (n,) int, which digits to draw. One that finds no place, because too little of
            another would stay visible, is left out.
        size (int): Side of the square image.
        digit_size (tuple[float, float]): Smallest and largest side of a scan in the image.
        rng (np.random.Generator): The only source of randomness.
    """
    image, photo, crop = _background(sources.photos, split, size, rng)
    owner = np.full((size, size), -1, dtype=np.int16)  # which digit shows at each pixel
    drawn: list[tuple[int, int]] = []
    areas: list[int] = []
    for digit in digits:
        scan = int(rng.choice(sources.pools[split][digit]))
        ink = _ink(sources.scans[scan], rng.uniform(*digit_size), size, rng)
        place, colour = _place_and_colour(ink, image, owner, np.array(areas), rng)
        if place is None:
            continue
        window = tuple(slice(p, p + n) for p, n in zip(place, ink.shape, strict=True))
        opacity = ink[..., None] * rng.uniform(0.88, 1)
        image[window] += (colour - image[window]) * opacity
        mask = ink >= 0.5
        owner[window][mask] = len(drawn)
        drawn.append((int(digit), scan))
        areas.append(int(mask.sum()))
    instances = [Instance(d, scan, owner == i) for i, (d, scan) in enumerate(drawn)]
    return Scene(np.rint(image).astype(np.uint8), instances, photo, crop)


def _background(
    photos: dict[str, np.ndarray], split: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, str, tuple[int, int, int, int]]:
    """Cut a random square of the split's side of a photograph as (size, size, 3) float32."""
    photo = str(rng.choice(sorted(photos)))
    left, right = BACKGROUND_COLUMNS[split]
    height = photos[photo].shape[0]
    largest = min(right - left, height)
    # From an enlarged detail to as much as there is, all scales alike.
    side = int(np.exp(rng.uniform(np.log(min(0.6 * size, largest)), np.log(largest))))
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(0, height - side + 1))
    crop = photos[photo][y : y + side, x : x + side]
    shrinks = side > size
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    mean = crop.mean(axis=(0, 1), keepdims=True)
    # Less contrast than the photograph, else no ink stands out from the pagoda's carvings.
    faded = (crop - mean) * rng.uniform(0.4, 0.9) + mean + rng.uniform(-30, 30)
    return np.clip(faded, 0, 255).astype(np.float32), photo, (x, y, side, side)


def _stroke_field(scan: np.ndarray) -> np.ndarray:
    """Enlarge an 8x8 scan with a margin of two cells to a smooth (96, 96) field of ink.

    A stroke fills its cells only in part, so the loops of an 8 close and a light stroke of a 9
    breaks at any one level. Sharpening before, and dividing by the ink nearby after enlarging
    (half local, half global, so that smudges stay light), opens the one and keeps the other.
    """
    field = cv2.copyMakeBorder(scan, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=0)
    field = 1.5 * field - 0.5 * cv2.GaussianBlur(field, (0, 0), 1)
    field = cv2.resize(field, None, fx=CELL, fy=CELL, interpolation=cv2.INTER_CUBIC)
    field = cv2.GaussianBlur(field, (0, 0), 0.25 * CELL)
    nearby = cv2.dilate(field, np.ones((2 * CELL + 1, 2 * CELL + 1)))
    nearby = cv2.GaussianBlur(nearby, (0, 0), CELL)
    return field / (0.5 * field.max() + 0.5 * np.maximum(nearby, 0.25))


def _ink(scan: np.ndarray, digit_size: float, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Turn an 8x8 scan into pen strokes.

    The cells are how much of a 4x4 block was ink, so the outline of the strokes is a level line
    of the smoothly enlarged scan. The level is cut after rotation and scaling, with a ramp of
    about one pixel, so edges are equally crisp at every size.

    Returns:
        np.ndarray: Coverage from 0 to 1, cut to the ink; neither side is longer than ``limit``.
    """
    field = _stroke_field(scan)
    angle = np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    stretch = MAX_STRETCH ** rng.uniform(-1, 1)
    shear = rng.uniform(-MAX_SHEAR, MAX_SHEAR)
    level = rng.uniform(0.39, 0.47)  # a broad or a fine pen
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = rotate @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch, 1 / stretch])
    while True:
        scale = digit_size / (8 * CELL)
        canvas = int(np.ceil(2 * digit_size))
        matrix = scale * shape
        center = np.array([(s - 1) / 2 for s in field.shape[::-1]])
        offset = (canvas - 1) / 2 - matrix @ center
        warped = cv2.warpAffine(field, np.column_stack([matrix, offset]), (canvas, canvas))
        # The slope at a stroke's edge is about 0.6 per cell.
        ramp = 0.6 / (digit_size / 8)
        coverage = np.clip((warped - level) / ramp + 0.5, 0, 1)
        rows, columns = (np.flatnonzero((coverage > 0).any(axis=a)) for a in (1, 0))
        coverage = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if max(coverage.shape) <= limit:
            return coverage
        digit_size *= 0.9


def _place_and_colour(
    ink: np.ndarray, image: np.ndarray, owner: np.ndarray, areas: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[int, int] | None, np.ndarray | None]:
    """Look for a place where ink of some colour stands out; keep the best of a few.

    Args:
        ink (np.ndarray): (h, w) coverage of the new digit.
        image (np.ndarray): (H, W, 3) float32, the image so far.
        owner (np.ndarray): (H, W) int, which digit shows at each pixel, -1 for none.
        areas (np.ndarray): (n,) the number of pixels that each earlier digit was drawn with.
        rng (np.random.Generator): Chooses places and colours.

    Returns:
        tuple: The (y, x) of the upper left corner and an RGB colour, or (None, None).
    """
    best = (-1.0, None, None)
    for _ in range(CONTRAST_TRIES):
        place = _find_place(ink >= 0.5, owner, areas, rng)
        if place is None:
            break
        window = tuple(slice(p, p + n) for p, n in zip(place, ink.shape, strict=True))
        share, colour = _find_colour(image[window], owner[window], rng)
        if share > best[0]:
            best = (share, place, colour)
        if share >= CONTRAST_SHARE:
            break
    return best[1:]


def _find_place(
    mask: np.ndarray, owner: np.ndarray, areas: np.ndarray, rng: np.random.Generator
) -> tuple[int, int] | None:
    """Find a random (y, x) at which ``mask`` covers no earlier digit too much, or None.

    Args:
        mask (np.ndarray): (h, w) bool, the new digit.
        owner (np.ndarray): (H, W) int, which digit shows at each pixel, -1 for none.
        areas (np.ndarray): (n,) the number of pixels that each earlier digit was drawn with.
        rng (np.random.Generator): Proposes places.
    """
    height, width = mask.shape
    shown = np.bincount(owner.ravel() + 1, minlength=len(areas) + 1)[1:]
    for _ in range(PLACEMENT_TRIES):
        y = int(rng.integers(owner.shape[0] - height + 1))
        x = int(rng.integers(owner.shape[1] - width + 1))
        covered = owner[y : y + height, x : x + width][mask]
        hidden = np.bincount(covered + 1, minlength=len(areas) + 1)[1:]
        if np.all(shown - hidden >= MIN_VISIBLE * areas):
            return y, x
    return None


def _find_colour(canvas: np.ndarray, owner: np.ndarray, rng: np.random.Generator) -> tuple[float, np.ndarray]:
    """Find a random ink colour that stands out from the background and from each digit on it.

    Args:
        canvas (np.ndarray): (h, w, 3) float32, the part of the image around the new digit.
        owner (np.ndarray): (h, w) int, which digit shows at each pixel, -1 for none.
        rng (np.random.Generator): Proposes colours; black and white come last.

    Returns:
        tuple[float, np.ndarray]: The share of pixels that the ink stands out from, in the worst of background and
        digits, and the RGB colour.
    """
    low, high = np.array([(0, 360), (0.2, 1), (0, 1)]).T
    hsv = rng.uniform(low, high, (1, INK_CANDIDATES, 3)).astype(np.float32)
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] * 255
    colours = np.concatenate([colours, np.float32([[10, 10, 10], [250, 250, 250]])])
    far = np.abs((canvas @ RGB_TO_LUMA)[..., None] - colours @ RGB_TO_LUMA) >= MIN_CONTRAST
    shares = np.min([far[owner == i].mean(axis=0) for i in np.unique(owner)], axis=0)
    good = np.flatnonzero(shares >= CONTRAST_SHARE)
    choice = good[0] if len(good) else shares.argmax()
    return float(shares[choice]), colours[choice]
