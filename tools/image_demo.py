"""Draw what a trained classifier, detector or segmentor sees in a picture or a folder of pictures."""

import argparse
from pathlib import Path

from mmengine.device import get_device

from mmlavit.engine import UserError, load_config, one_line_errors
from mmlavit.engine.inference import build_predictor, find_pictures, read_picture


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pictures', help='a picture, or a folder (subfolders included)')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='outputs', help='where drawn pictures go; default: outputs')
    parser.add_argument('--device', default=get_device(), help='cpu or cuda:0; default: %(default)s')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out detections below; default: %(default)s')
    return parser.parse_args()


def main() -> None:
    """Predict and draw, with one line per picture."""
    args = parse_args()
    with one_line_errors():
        pictures = find_pictures(args.pictures)
        cfg = load_config(args.config)
        predictor = build_predictor(cfg, args.checkpoint, args.device, args.score_thr)
        root = Path(args.pictures).expanduser()
        for picture in pictures:
            name = picture.name if picture == root else picture.relative_to(root)
            out_file = Path(args.out_dir, name)
            if out_file.resolve() == picture.resolve():
                raise UserError(f'--out-dir {args.out_dir} would overwrite {picture}; choose another')
            image = read_picture(picture)
            sample = predictor.predict(image)
            predictor.draw(image, sample, out_file)
            print(f'{picture}: {predictor.describe(sample)} -> {out_file}', flush=True)


if __name__ == '__main__':
    main()
