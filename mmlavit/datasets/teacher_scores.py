"""Class scores of a teacher, computed once and read in training (ours)."""

from __future__ import annotations

import os.path as osp
import zipfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from mmlavit.errors import ConfigError, UserError
from mmlavit.utils.local_files import write_file


class TeacherScores(NamedTuple):
    """What a teacher says of images.

    Args:
        names (Sequence[str]): N files, relative to a folder.
        logits (np.ndarray): Class scores before softmax, (N, classes).
    """

    names: Sequence[str]
    logits: np.ndarray

    def save(self, path: str) -> None:
        """Write to a ``.npz`` file, the logits in half precision."""
        content = BytesIO()
        np.savez(content, names=np.asarray(self.names), logits=self.logits.astype(np.float16))
        write_file(path, content.getvalue())

    @classmethod
    def load(cls, path: str) -> TeacherScores:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: If there is no such file, or it is of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names, logits = file['names'].tolist(), file['logits']
        except FileNotFoundError:
            raise UserError(f'{path} does not exist; make it with tools/misc/predict_scores.py') from None
        except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f'{path} has no scores of a teacher: {error}') from error
        if len(names) != len(logits):
            raise UserError(f'{path} has no scores of a teacher: {len(names)} names, {len(logits)} logits')
        return cls(names, logits)


@TRANSFORMS.register_module()
class AddTeacherScores(BaseTransform):
    """Let a classifier learn from labels and from what a teacher said of the whole image.

    The target is ``share * softmax(logits) + (1 - share) * label``. With cross entropy, which is linear in the target,
    that is the weighted sum of both losses. A loss for soft targets is needed: ``CrossEntropyLoss(use_soft=True)``.

    Required keys: ``img_path``, ``gt_label``. Added key: ``gt_score``.

    Args:
        file (str): What ``tools/misc/predict_scores.py`` wrote.
        root (str): The folder whose images were given to it.
        share (float): The teacher's share in the target.

    Raises:
        ConfigError: If the share is not between 0 and 1.
        UserError: If the file cannot be read, an image is not in it, or a label is not among its classes.
    """

    def __init__(self, file: str, root: str, share: float = 0.5) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f'AddTeacherScores: share must be from 0 to 1, got {share}')
        scores = TeacherScores.load(file)
        self.file, self.root, self.share = file, root, share
        self.rows = {name: i for i, name in enumerate(scores.names)}
        self.logits = scores.logits

    def transform(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Add the target, of shape (classes,)."""
        name = osp.relpath(results['img_path'], self.root)
        if name not in self.rows:
            raise UserError(f'{self.file} has no scores of {name}; make it from all images in {self.root}')
        logits = self.logits[self.rows[name]].astype(np.float32)
        if not 0 <= results['gt_label'] < len(logits):
            raise UserError(f'{name} has label {results["gt_label"]}, but {self.file} has {len(logits)} classes')
        likelihood = np.exp(logits - logits.max())
        target = self.share * likelihood / likelihood.sum()
        target[results['gt_label']] += 1 - self.share
        return {**results, 'gt_score': target.astype(np.float32)}
