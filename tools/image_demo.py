#!/usr/bin/env python
"""Draw what a trained classifier, detector or segmentor sees in images or a video, and list it as JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.device import get_device
from rich.progress import track

from mmlavit.errors import UserError, one_line_errors
from mmlavit.utils.arguments import add_options_argument, add_trust_argument
from mmlavit.utils.config_files import load_config
from mmlavit.utils.json_list import JsonList, read_entries
from mmlavit.utils.local_files import expand_home, require_folder, write_file
from mmlavit.visualization.drawing import write_picture
from mmlavit.visualization.video import write_video
from mmlavit_serve import Predictor
from mmlavit_serve.predictor import IMAGES, find_images
from mmlavit_serve.video import VIDEOS, Video, is_video

PREDICTIONS = 'predictions.json'
DRAWN = '.drawn.json'  # what may be overwritten, since it is of this tool


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} It writes the drawn images under their own names, or the drawn video as .mp4, and '
        f'{PREDICTIONS}: a list with an entry for each image or frame, whole after each.',
        epilog='Exit code 0: all images or frames were predicted; 1: some were not, and are listed; 2: wrong '
        'usage; 130 or 143: stopped by Ctrl-C or SIGTERM, after the image that it was at.',
    )
    parser.add_argument(
        'pictures', help=f'an image, a folder of them (subfolders included), or a video ({", ".join(VIDEOS)})'
    )
    parser.add_argument('model', help='config file, or a model that tools/deployment/export.py wrote (.onnx)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file, for a config')
    parser.add_argument('--out-dir', default='outputs', help='where results go; default: outputs')
    parser.add_argument(
        '--resume',
        action='store_true',
        help=f'continue: keep what {PREDICTIONS} in --out-dir has, and predict on the images that are not in it or '
        'could not be used. Use the same model and options',
    )
    parser.add_argument(
        '--runtime', choices=['onnxruntime', 'openvino'], help='what runs an exported model; default: onnxruntime'
    )
    parser.add_argument(
        '--device',
        help=f'such as cpu or cuda:0; default: {get_device()} for a config, cpu for an exported model',
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out detections below; default: %(default)s')
    parser.add_argument(
        '--memory-limit',
        type=float,
        metavar='GB',
        help='refuse images that need more memory; default: what is available',
    )
    add_options_argument(parser, 'change settings of the config, such as model.test_cfg.max_per_img=20')
    add_trust_argument(parser)
    return parser.parse_args()


def main() -> None:
    """Predict, draw and record."""
    args = parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # names of files may have any bytes
    with one_line_errors():
        root, out_dir = expand_home(args.pictures), expand_home(args.out_dir)
        drawn = read_drawn(out_dir)
        video, files = find_work(root, out_dir, drawn)
        if video and args.resume:
            raise UserError(f'--resume continues folders of images; {root} is a video and is drawn as a whole')
        exported = Path(args.model).suffix == '.onnx'
        device = args.device or ('cpu' if exported else get_device())
        limit = None if args.memory_limit is None else args.memory_limit * 1e9
        options = dict(runtime=args.runtime, device=device, score_thr=args.score_thr, memory_limit=limit)
        model = args.model
        if args.cfg_options:
            if exported:
                raise UserError(f'--cfg-options change a config; {model} is an exported model')
            model = load_config(model, args.cfg_options)
        predictor = Predictor(model, args.checkpoint, **options)
        require_folder(out_dir, '--out-dir')
        if not args.resume and (out_dir / PREDICTIONS).exists() and not (out_dir / DRAWN).is_file():
            raise UserError(f'--out-dir {out_dir} has a {PREDICTIONS} that no run has written; choose another folder')
        done = read_done(out_dir / PREDICTIONS) if args.resume else []
        names = {name_in(out_dir, out_file) for out_file in files.values()}
        write_file(out_dir / DRAWN, json.dumps(sorted(drawn | names)).encode())
        with JsonList(out_dir / PREDICTIONS, done) as records, stop_at_signals() as received:
            if video:
                failed = show_video(predictor, video, root, files[root], records, received)
            else:
                known = {entry['picture'] for entry in done}
                left = {path: out for path, out in files.items() if name_in(out_dir, out) not in known}
                if args.resume:
                    print(
                        f'{len(files) - len(left):,} of {len(files):,} images are in {PREDICTIONS} already', flush=True
                    )
                failed = show_pictures(predictor, left, out_dir, records, received)
        finish(out_dir / PREDICTIONS, failed, received)


def find_work(root: Path, out_dir: Path, drawn: Collection[str]) -> tuple[Video | None, dict[Path, Path]]:
    """Find what is to be predicted on.

    Args:
        root (Path): An image, a folder or a video.
        out_dir (Path): Where results go.
        drawn (Collection[str]): Files there that runs before have drawn, which may be overwritten.

    Returns:
        tuple[Video | None, dict[Path, Path]]: The video, if it is one; each file and where it is drawn.

    Raises:
        UserError: If there is nothing, or the results would overwrite it.
    """
    if is_video(root):
        video, files = Video(root), {root: out_dir / f'{root.stem}.mp4'}
    else:
        video, pictures = None, find_images(root)
        results = out_dir.resolve()
        if root.resolve() in results.parents:  # results among the images are not predicted on
            pictures = [path for path in pictures if results not in path.resolve().parents]
        names = {path: Path(path.name) if path == root else path.relative_to(root) for path in pictures}
        for path, name in names.items():
            if not can_write(name.suffix):
                names[path] = name.with_name(f'{name.name}.png')
        files = {path: out_dir / name for path, name in names.items()}
    drawn_from: dict[Path, Path] = {}
    sources = {source.resolve() for source in files}
    for source, out_file in files.items():
        if out_file in drawn_from:
            raise UserError(
                f'{drawn_from[out_file]} and {source} would both be drawn to {out_file}; rename one of them'
            )
        drawn_from[out_file] = source
        known = name_in(out_dir, out_file) in drawn
        if out_file.resolve() in sources or (out_file.is_file() and not known):
            raise UserError(f'--out-dir {out_dir} would overwrite {out_file}, which no run has drawn; choose another')
    return video, files


def name_in(out_dir: Path, out_file: Path) -> str:
    """Give what the lists in a folder call a file in it."""
    return out_file.relative_to(out_dir).as_posix()


def read_drawn(out_dir: Path) -> set[str]:
    """Read which files in a folder have been drawn by this tool; none if it has not drawn there."""
    try:
        return set(json.loads((out_dir / DRAWN).read_bytes()))
    except (OSError, TypeError, ValueError):
        return set()


def can_write(suffix: str) -> bool:
    """Tell whether drawings are written in files of this ending; those of PGM would be gray."""
    return suffix.lower() in IMAGES and suffix.lower() != '.pgm'


def read_done(file: Path) -> list[dict[str, Any]]:
    """Read the entries of images that could be used.

    Args:
        file (Path): The list of predictions.

    Returns:
        list[dict]: The entries; none if there is no file.

    Raises:
        UserError: If it is something else, such as the list of a video.
    """
    entries = read_entries(file)
    if not all(isinstance(entry, dict) and 'picture' in entry for entry in entries):
        raise UserError(f'{file} is not a list of predictions on images; choose another folder with --out-dir')
    return [entry for entry in entries if 'error' not in entry]


def finish(file: Path, failed: Mapping[Path, str], received: Sequence[int]) -> None:
    """Say what was not done, and end with the exit code for it.

    Args:
        file (Path): The list of predictions.
        failed (Mapping[Path, str]): Images that could not be used, and why.
        received (Sequence[int]): Signals that asked to stop.

    Raises:
        SystemExit: If something was not done.
    """
    print(f'predictions -> {file}', flush=True)
    if failed:
        print(f'Not predicted, or not all of it: {len(failed)}', file=sys.stderr)
        for picture, reason in failed.items():
            print(f'  {picture}: {reason}', file=sys.stderr)
    if received:
        name = signal.Signals(received[0]).name
        print(f'stopped by {name}; the same command with --resume continues a folder of images', file=sys.stderr)
        raise SystemExit(128 + received[0])
    if failed:
        raise SystemExit(1)


@contextmanager
def stop_at_signals() -> Iterator[list[int]]:
    """Note signals that ask to stop, instead of ending in the middle of something; a second one ends at once.

    Yields:
        list[int]: The signals so far.
    """
    received = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_pictures(
    predictor: Predictor, files: Mapping[Path, Path], out_dir: Path, records: JsonList, received: Sequence[int]
) -> dict[Path, str]:
    """Draw images, with one line for each.

    Args:
        predictor (Predictor): Predicts and draws.
        files (Mapping[Path, Path]): Images and where each is drawn.
        out_dir (Path): Where ``files`` go; the list names them from there.
        records (JsonList): Takes an entry for each image, when it is drawn.
        received (Sequence[int]): Signals that ask to stop, after the image that is being drawn.

    Returns:
        dict[Path, str]: Images that could not be used, and why.
    """
    failed = {}
    results = predictor.predict_each(files, keep_going=True)
    for (picture, out_file), (image, result) in zip(files.items(), results, strict=True):
        name = name_in(out_dir, out_file)
        if isinstance(result, UserError):
            failed[picture] = str(result).removeprefix(f'{picture} ')
            records.append(dict(picture=name, error=failed[picture]))
            print(f'{picture}: not predicted: {failed[picture]}', file=sys.stderr)
        else:
            height, width = result.shape
            entry = dict(picture=name, height=height, width=width, **result.to_dict())
            try:
                write_picture(out_file, result.draw(image))
                print(f'{picture}: {result.describe()} -> {out_file}', flush=True)
            except UserError as error:  # where the disk is full, the list cannot be written either
                failed[picture] = str(error)
                entry['error'] = failed[picture]
                print(f'{picture}: not drawn: {failed[picture]}', file=sys.stderr)
            records.append(entry)
        if received:
            break
    return failed


def show_video(
    predictor: Predictor, video: Video, path: Path, out_file: Path, records: JsonList, received: Sequence[int]
) -> dict[Path, str]:
    """Draw a video, with a bar of progress.

    Args:
        predictor (Predictor): Predicts and draws.
        video (Video): Its frames.
        path (Path): Its file.
        out_file (Path): Where it is drawn.
        records (JsonList): Takes an entry for each frame.
        received (Sequence[int]): Signals that ask to stop, after the frame that is being drawn.

    Returns:
        dict[Path, str]: The video, if it was not read to its end, and why.
    """
    start = time.monotonic()
    width, height, frames = video.width, video.height, 0
    with write_video(out_file, video.fps, width, height) as write:
        # Some files do not say how many frames they have.
        for frame in track(video, description=path.name, total=video.frames or None):
            result = predictor.predict(frame)
            write(result.draw(frame))
            seconds = round(frames / video.fps, 3)
            rows, columns = result.shape  # not always those that the file says
            records.append(dict(frame=frames, seconds=seconds, height=rows, width=columns, **result.to_dict()))
            frames += 1
            if received:
                break
    pace = frames / (time.monotonic() - start)
    print(f'{path}: {frames} frames of {width}x{height}, {pace:.1f} a second -> {out_file}', flush=True)
    return {path: video.problem} if video.problem and not received else {}


if __name__ == '__main__':
    main()
