"""What is wrong with a single image file or label map: each fault in a few words, with what to do."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

# What files of these kinds end in. Some have more behind it.
_ENDS = {b'\xff\xd8': b'\xff\xd9', b'\x89P': b'IEND\xaeB`\x82'}
_TAIL = 4096
_ORIENTATION, _BITS = 0x0112, 0x0102  # tags of EXIF and TIFF

# Pillow raises its error for more than twice its limit; decoded, such an image takes half a gigabyte in each worker.
LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)


def find_fault(path: str | os.PathLike, decode: bool = True) -> str:
    """Say what is wrong with an image file.

    Grayscale, CMYK and palette images are fine: they are loaded as three channels. So are images of any size from 1x1
    on, up to 179 million pixels.

    Args:
        path (str or Path): The file.
        decode (bool): Whether to decode it whole; otherwise only if it does not end as it should.

    Returns:
        str: Such as ``is cut off: get it again``; '' if nothing is wrong.
    """
    fault = find_file_fault(path, decode)
    if not fault and has_16_bits(path):
        return 'has 16 bits in each channel, of which the lower 8 are lost: convert it to 8 bits'
    return fault


def find_missing(path: str | os.PathLike) -> str:
    """Do the same for a file of any format: whether it is there and has something in it."""
    path = Path(path)
    if not path.is_file():
        return 'does not exist: get it, or remove it from the annotations'
    return '' if path.stat().st_size else 'is empty: get it again'


def find_file_fault(path: str | os.PathLike, decode: bool = True) -> str:
    """Do the same for an image or a label map, which may have 16 bits."""
    if fault := find_missing(path):
        return fault
    try:
        cut = is_cut_off(path)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if decode or cut:
                    image.load()
    except Image.DecompressionBombError:
        return f'has more than {LARGEST / 1e6:.0f} million pixels: cut it into pieces, or make it smaller'
    except UnidentifiedImageError:
        return 'is not an image that can be read: get it again, or convert it to JPEG or PNG'
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError is Pillow's for a broken PNG
        if getattr(error, 'errno', None) is not None:  # of the system
            return f'cannot be read ({error.strerror})'
        cut = cut or 'truncated' in str(error)
        return f'{"is cut off" if cut else f"is damaged ({error})"}: get it again'
    return ''


def is_cut_off(path: str | os.PathLike) -> bool:
    """Tell whether a JPEG or PNG file lacks its end, without decoding it."""
    with open(path, 'rb') as file:
        end = _ENDS.get(file.read(2))
        if end is None:
            return False
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return end not in file.read()


def has_16_bits(path: str | os.PathLike) -> bool:
    """Tell by its header whether a PNG or TIFF file has more than 8 bits in each channel."""
    with open(path, 'rb') as file:
        head = file.read(25)
    if head[:4] == b'\x89PNG':
        return head[24] == 16
    if head[:2] not in (b'II', b'MM'):
        return False
    with suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
        return max(image.tag_v2.get(_BITS, (8,))) > 8
    return False


def read_values(path: str | os.PathLike) -> np.ndarray:
    """Read the numbers of an image, (H, W) or (H, W, C), in the depth that the file has and without transparency."""
    values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:  # such as a TIFF file with a compression that only Pillow knows
        with Image.open(path) as image:
            values = np.asarray(image)
    return values[..., :3] if values.ndim == 3 else values


def read_size(path: str | os.PathLike, turns: bool = True) -> tuple[int, int] | None:
    """Read the height and width that an image has once it is loaded.

    Args:
        path (str or Path): The file; only its header is read.
        turns (bool): Whether it is turned as its EXIF tag says.

    Returns:
        tuple[int, int], optional: Height and width; None if it cannot be read.
    """
    with suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError), warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        with Image.open(path) as image:
            width, height = image.size
            # Pillow has turned the size of a TIFF file already, and OpenCV turns no others.
            turns = turns and image.format in ('JPEG', 'MPO', 'PNG')
            turned = turns and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width)
    return None


def find_map_fault(
    path: str | os.PathLike, size: tuple[int, int] | None, labels: Collection[int] | None, panoptic: bool = False
) -> str:
    """Say what is wrong with a label map.

    Args:
        path (str or Path): The file.
        size (tuple[int, int], optional): Height and width of its image; None: not known.
        labels (Collection[int], optional): Values that may be in it; None: any.
        panoptic (bool): Whether it has the numbers of segments, in three channels as in COCO's panoptic files.

    Returns:
        str: As of :func:`find_fault`.
    """
    fault = find_file_fault(path)
    if fault:
        return fault
    with Image.open(path) as image:
        values = np.asarray(image)
    if values.ndim != 2 and not panoptic:
        return 'is not a label map: expected one channel with the number of a class in each pixel'
    if 1 in values.shape[:2]:
        return 'is a label map of one pixel in width or height, which mmseg cannot load: remove it and its image'
    if size is not None and values.shape[:2] != tuple(size):
        return (
            f'is {values.shape[1]}x{values.shape[0]}, but its image is {size[1]}x{size[0]} as it is loaded: make both '
            'alike (an EXIF tag that turns the image does not turn its map)'
        )
    return find_label_fault(values, labels)


def read_labels(path: str | os.PathLike) -> set[int]:
    """Read which labels a map has."""
    with Image.open(path) as image:
        return set(np.unique(np.asarray(image)).tolist())


def find_label_fault(values: np.ndarray, labels: Collection[int] | None) -> str:
    """Say which labels of a map (H, W) are not among those that may be there; '' if none."""
    if labels is None:
        return ''
    found = set(np.unique(values).tolist())
    strange = sorted(found - set(labels))
    if not strange:
        return ''
    shown = ', '.join(map(str, strange[:5])) + (', ...' if len(strange) > 5 else '')
    known = [label for label in labels if label not in (255, 65535)]
    shifted = 0 not in found and strange[0] == max(known, default=-1) + 1
    advice = '; if labels begin at 1, reduce_zero_label=True in mmseg' if shifted else ''
    return f'has labels that no class has ({shown}): correct them, or set what is ignored to 255{advice}'
