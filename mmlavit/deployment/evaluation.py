"""An exported model in the place of a config's, so that ``tools/test.py CONFIG model.onnx`` gives the same metrics."""

from __future__ import annotations

import os.path as osp
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import nn

from mmlavit.errors import UserError
from mmlavit_serve import Classification, Detections, Predictor, Result


class ExportedModel(BaseModel):
    """A model file as mmengine's runner tests it. It reads and resizes images itself, as it does for its users.

    Args:
        file (str): The file.
        runtime (str, optional): 'onnxruntime' (default) or 'openvino'.
        device (str): 'cpu', or another that the runtime has.
    """

    def __init__(self, file: str, runtime: str | None = None, device: str = 'cpu') -> None:
        super().__init__()
        # All that the graph gives out: a metric has thresholds of its own.
        self.predictor = Predictor(file, runtime=runtime, device=device, score_thr=-1)
        # What tests in several processes wrap around a model refuses one without parameters.
        self.unused = nn.Parameter(torch.zeros(()))

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
