#!/usr/bin/env python
"""Draw what a trained classifier, detector or segmentor sees in images or a video, and list it as JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.device import get_device
from rich.progress import track

from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_trust_argument
from mmlavit.visualization.drawing import write_picture
from mmlavit.visualization.video import write_video
from mmlavit_serve import Predictor
from mmlavit_serve.predictor import find_images
from mmlavit_serve.video import VIDEOS, Video, is_video

PREDICTIONS = 'predictions.json'

Append = Callable[[dict[str, Any]], None]
"""Takes an entry of the list of predictions."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Written are the drawn images under their own names, or the drawn video as .mp4, and '
        f'{PREDICTIONS}: a list with an entry for each image or frame.'
    )
    parser.add_argument(
        'pictures', help=f'an image, a folder of them (subfolders included), or a video ({", ".join(VIDEOS)})'
    )
    parser.add_argument('model', help='config file, or a model that tools/deployment/export.py wrote (.onnx)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file, for a config')
    parser.add_argument('--out-dir', default='outputs', help='where results go; default: outputs')
    parser.add_argument(
        '--runtime', choices=['onnxruntime', 'openvino'], help='what runs an exported model; default: onnxruntime'
    )
    parser.add_argument('--device', default=get_device(), help='such as cpu or cuda:0; default: %(default)s')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out detections below; default: %(default)s')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    """Predict, draw and record."""
    args = parse_args()
    with one_line_errors():
        root, out_dir = Path(args.pictures).expanduser(), Path(args.out_dir)
        if is_video(root):
            video, files = Video(root), {root: out_dir / f'{root.stem}.mp4'}
        else:
            video, pictures = None, find_images(root)
            files = {path: out_dir / (path.name if path == root else path.relative_to(root)) for path in pictures}
        for source, out_file in files.items():
            if source.resolve() == out_file.resolve():
                raise UserError(f'--out-dir {args.out_dir} would overwrite {source}; choose another')
        options = dict(runtime=args.runtime, device=args.device, score_thr=args.score_thr)
        predictor = Predictor(args.model, args.checkpoint, **options)
        out_dir.mkdir(parents=True, exist_ok=True)
        with json_list(out_dir / PREDICTIONS) as append:
            if video:
                show_video(predictor, video, root, files[root], append)
            else:
                show_pictures(predictor, files, out_dir, append)
    print(f'predictions -> {out_dir / PREDICTIONS}')


@contextmanager
def json_list(path: Path) -> Iterator[Append]:
    """Write a JSON list entry by entry, a line each; it is whole also if the block ends early."""
    with path.open('w') as file:
        separator = '[\n'

        def append(entry: dict[str, Any]) -> None:
            nonlocal separator
            file.write(separator + json.dumps(entry))
            separator = ',\n'

        try:
            yield append
        finally:
            file.write('\n]\n' if separator == ',\n' else '[]\n')


def show_pictures(predictor: Predictor, files: Mapping[Path, Path], out_dir: Path, append: Append) -> None:
    """Draw images, with one line for each.

    Args:
        predictor (Predictor): Predicts and draws.
        files (Mapping[Path, Path]): Images and where each is drawn.
        out_dir (Path): Where ``files`` go; the list names them from there.
        append (Append): Takes entries of the list.
    """
    for (picture, out_file), (image, result) in zip(files.items(), predictor.predict_each(files), strict=True):
        write_picture(out_file, result.draw(image))
        height, width = result.shape
        name = out_file.relative_to(out_dir).as_posix()
        append(dict(picture=name, height=height, width=width, **result.to_dict()))
        print(f'{picture}: {result.describe()} -> {out_file}', flush=True)


def show_video(predictor: Predictor, video: Video, path: Path, out_file: Path, append: Append) -> None:
    """Draw a video, with a bar of progress.

    Args:
        predictor (Predictor): Predicts and draws.
        video (Video): Its frames.
        path (Path): Its file.
        out_file (Path): Where it is drawn.
        append (Append): Takes entries of the list.
    """
    start = time.monotonic()
    width, height, frames = video.width, video.height, 0
    with write_video(out_file, video.fps, width, height) as write:
        # Some files do not say how many frames they have.
        for frame in track(video, description=path.name, total=video.frames or None):
            result = predictor.predict(frame)
            write(result.draw(frame))
            seconds = round(frames / video.fps, 3)
            append(dict(frame=frames, seconds=seconds, height=height, width=width, **result.to_dict()))
            frames += 1
    pace = frames / (time.monotonic() - start)
    print(f'{path}: {frames} frames of {width}x{height}, {pace:.1f} a second -> {out_file}', flush=True)


if __name__ == '__main__':
    main()
