"""The ops of mmcv that LaViT's detectors call, computed by torchvision.

mmcv compiles its C++ ops into ``mmcv/_ext.*.so`` and imports them as ``mmcv._ext``. This module has the same name and
lies in the same folder; Python prefers the compiled one where both exist. Signatures are those of mmcv's C++ functions,
which write their results into tensors of the caller. Every other op can be imported, as ``mmcv.ops`` does, and raises
when it is called.
"""

import sys

import numpy as np
import torch
import torchvision

_AVERAGE = 1  # mmcv's code for pool_mode='avg'; 0 is 'max'
_LINEAR, _GAUSSIAN = 1, 2  # its codes for the methods of soft NMS; 0 is naive


def get_compiler_version():
    """Return who compiled the ops, for the report of the environment."""
    return f'torchvision {torchvision.__version__}'


def get_compiling_cuda_version():
    """Return the CUDA version of torchvision's ops, in the words of mmcv's C++ code."""
    version = torch.ops.torchvision._cuda_version()
    if version < 0:
        return torch.version.hip or 'not available'
    return f'{version // 1000}.{version // 10 % 100}'


def nms(boxes, scores, iou_threshold, offset):
    """Return the indices (K,) of the boxes to keep, best score first.

    Args:
        boxes (Tensor): (N, 4) as x1, y1, x2, y2.
        scores (Tensor): (N,).
        iou_threshold (float): A box is dropped if it overlaps a better one by more than this.
        offset (int): 1 if x2 and y2 belong to the box, as in integer pixels, else 0.
    """
    boxes = boxes.float()
    if offset:  # moving the far corner gives the same areas and intersections
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv rounds the threshold like the overlaps; else boxes that overlap by just that much are judged otherwise.
    return torchvision.ops.nms(boxes, scores.float(), float(np.float32(iou_threshold)))


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset):
    """Write the K boxes that are kept, with their lowered scores, into ``dets`` and return their indices (K,).

    Args:
        boxes (Tensor): (N, 4) as x1, y1, x2, y2.
        scores (Tensor): (N,).
        dets (Tensor): (N, 5), of which the first K rows are written.
        iou_threshold (float): For the naive and the linear method: where overlap begins to count.
        sigma (float): Width of the Gaussian method.
        min_score (float): Boxes are dropped when their score falls below it.
        method (int): 0 naive, 1 linear, 2 Gaussian.
        offset (int): As for :func:`nms`.
    """
    corners, scores = boxes.float().numpy(), scores.float().numpy()
    remaining, kept = np.arange(len(scores)), []
    while len(remaining):
        best = scores.argmax()
        box = corners[best]
        dets[len(kept)] = torch.tensor([*box, scores[best]])
        kept.append(remaining[best])
        corners, scores, remaining = (np.delete(array, best, axis=0) for array in (corners, scores, remaining))

        sides = np.minimum(box[2:], corners[:, 2:]) - np.maximum(box[:2], corners[:, :2]) + offset
        intersection = sides.clip(min=0).prod(1)
        areas = (corners[:, 2:] - corners[:, :2] + offset).prod(1)
        iou = intersection / ((box[2:] - box[:2] + offset).prod() + areas - intersection)
        if method == _GAUSSIAN:
            scores = scores * np.exp(-(iou**2) / sigma)
        else:
            scores = np.where(iou >= iou_threshold, scores * (1 - iou if method == _LINEAR else 0), scores)
        alive = ~(scores < min_score)  # as mmcv, keeps a score of NaN
        corners, scores, remaining = corners[alive], scores[alive], remaining[alive]
    return torch.tensor(kept, dtype=torch.long)


def roi_align_forward(
    input,
    rois,
    output,
    argmax_y,
    argmax_x,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Write the average of each bin of each region into ``output``.

    Args:
        input (Tensor): Map (B, C, H, W), of any memory format.
        rois (Tensor): (K, 5) as index of the image, x1, y1, x2, y2.
        output (Tensor): (K, C, aligned_height, aligned_width).
        argmax_y (Tensor): Used by max pooling only.
        argmax_x (Tensor): Used by max pooling only.
        aligned_height (int): Bins per column.
        aligned_width (int): Bins per row.
        spatial_scale (float): Size of the map over that of the image.
        sampling_ratio (int): Samples per bin and direction; 0 for as many as the bin has pixels.
        pool_mode (int): 1 for 'avg'.
        aligned (bool): Whether pixels are points half a pixel off.
    """
    if pool_mode != _AVERAGE:
        _raise_missing("RoIAlign with pool_mode='max'")
    dtype = _compute_dtype(input)
    pooled = torch.ops.torchvision.roi_align(
        input.to(dtype), rois.to(dtype), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output,
    rois,
    argmax_y,
    argmax_x,
    grad_input,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Write the gradient of the map into ``grad_input`` (B, C, H, W); arguments as in :func:`roi_align_forward`."""
    if pool_mode != _AVERAGE:
        _raise_missing("RoIAlign with pool_mode='max'")
    dtype = _compute_dtype(grad_output)
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype).contiguous(),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.copy_(grad)


def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Write the loss of every score into ``output``.

    Args:
        input (Tensor): Scores before the sigmoid (N, C).
        target (Tensor): Classes (N,); C is the background.
        weight (Tensor): (C,), multiplies the loss of all scores of a sample by that of its class; or empty.
        output (Tensor): (N, C).
        gamma (float): Exponent of the focus.
        alpha (float): Weight of the positive class.
    """
    output.copy_(_focal_loss(input.to(_compute_dtype(input)), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma, alpha):
    """Write the gradient of the summed loss into ``grad_input`` (N, C); arguments as in the forward."""
    with torch.enable_grad():
        scores = input.detach().to(_compute_dtype(input)).requires_grad_()
        (grad,) = torch.autograd.grad(_focal_loss(scores, target, weight, gamma, alpha).sum(), scores)
    grad_input.copy_(grad)


def _focal_loss(scores, target, weight, gamma, alpha):
    positive = target[:, None] == torch.arange(scores.shape[1], device=scores.device)
    # In logarithms: torchvision's power has an infinite derivative where gamma < 1 and a score is certain, hence NaN.
    log_p, log_not_p = torch.nn.functional.logsigmoid(scores), torch.nn.functional.logsigmoid(-scores)
    log_true = torch.where(positive, log_p, log_not_p)  # of the probability of what is true
    log_false = torch.where(positive, log_not_p, log_p)
    loss = -torch.where(positive, alpha, 1 - alpha) * (gamma * log_false).exp() * log_true
    if not weight.numel():
        return loss
    weight = torch.cat([weight, weight.new_ones(1)])  # of the background, which is class C
    return loss * weight[target, None]


def _compute_dtype(tensor):
    """Return float32 for half precision, which torchvision does not have on every device."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _raise_missing(op):
    # Tools of mmlavit print a UserError as one line; the ops also serve processes without mmlavit.
    errors = sys.modules.get('mmlavit.errors')
    raise (errors.UserError if errors else NotImplementedError)(
        f"{op} is none of the ops that torchvision provides to mmcv; it needs mmcv's compiled ops: "
        f'make install OPS=compiled, or see "Compiled ops" in docs/get_started.md of mmlavit'
    )


def __getattr__(name):
    if name.startswith('__'):
        raise AttributeError(name)

    def op(*args, **kwargs):
        _raise_missing(name)

    return op
