"""An exported model in the place of a config's, so that ``tools/test.py CONFIG model.onnx`` gives the same metrics."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn

from mmlavit.errors import UserError, first_few
from mmlavit.utils.toolbox import TASKS
from mmlavit_serve import Classification, Detections, Predictor, Result


class ExportedModel(BaseModel):
    """A model file as mmengine's runner tests it. It reads and resizes images itself, as it does for its users.

    Args:
        file (str): The file.
        runtime (str, optional): 'onnxruntime' (default) or 'openvino'.
        device (str): 'cpu', or another that the runtime has.
        scope (str, optional): Toolbox of the config; None: not checked.

    Raises:
        UserError: If the model is of another task than the toolbox.
    """

    def __init__(self, file: str, runtime: str | None = None, device: str = 'cpu', scope: str | None = None) -> None:
        super().__init__()
        # All that the graph gives out: a metric has thresholds of its own.
        self.predictor = Predictor(file, runtime=runtime, device=device, score_thr=-1)
        self.file = file
        task = self.predictor.model.task
        if TASKS.get(scope, task) != task:
            raise UserError(f'{file} is a model for {task}, but the config is one of {scope} for {TASKS[scope]}')
        # What tests in several processes wrap around a model refuses one without parameters.
        self.unused = nn.Parameter(torch.zeros(()))

    def require_classes(self, classes: Sequence[str] | None, data: str) -> None:
        """Make sure that the model and a dataset have the same classes; warn where only their names differ.

        Args:
            classes (Sequence[str], optional): Those of the dataset; None: not known.
            data (str): What messages call the dataset.

        Raises:
            UserError: If their numbers or their order differ.
        """
        known = self.predictor.model.classes
        if classes is None or known is None or list(classes) == list(known):
            return
        said = f'{self.file} has the classes {first_few(known)} ({len(known)}), but {data} {first_few(classes)} '
        said += f'({len(classes)})'
        if len(classes) == len(known) and set(classes) != set(known):  # other names for the same, perhaps
            MMLogger.get_current_instance().warning(f'{said}: are they the same?')
            return
        raise UserError(f'{said}; test it with the data of the config that it was exported from')

    def forward(self, inputs: Any, data_samples: list[BaseDataElement], mode: str = 'predict') -> list[BaseDataElement]:
        """Predict on the images that data samples name.

        Args:
            inputs (Any): Not looked at.
            data_samples (list[BaseDataElement]): With ``img_path``.
            mode (str): Not looked at: there is one.

        Returns:
            list[BaseDataElement]: The same, with predictions.

        Raises:
            UserError: If a data sample names no file.
        """
        for sample in data_samples:
            path = sample.get('img_path')
            if path is None or not osp.isfile(path):
                raise UserError(f'an exported model reads images from files of this machine; got img_path={path!r}')
        results = self.predictor.predict_each((sample.img_path for sample in data_samples), len(data_samples))
        for sample, (_, result) in zip(data_samples, results, strict=True):
            _fill(sample, result)
        return data_samples


def _fill(sample: BaseDataElement, result: Result) -> None:
    """Put a result into a data sample of its toolbox."""
    if isinstance(result, Classification):
        sample.set_pred_score(torch.from_numpy(result.scores))
        sample.set_pred_label(int(result.scores.argmax()))
    elif isinstance(result, Detections):
        found = InstanceData(
            bboxes=torch.from_numpy(result.boxes),
            scores=torch.from_numpy(result.scores),
            labels=torch.from_numpy(result.labels),
        )
        if result.masks is not None:
            found.masks = torch.from_numpy(result.masks)
        sample.pred_instances = found
    else:
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(result.labels)[None])
