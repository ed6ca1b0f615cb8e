"""Principal components of feature maps, against scikit-learn's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from mmlavit.analysis.pyramid import Level, _find_stride, plot_pyramid, project
from mmlavit.analysis.trained import Picture


def test_components_are_those_of_scikit_learn():
    features = torch.randn(12, 7, 9, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)[:, None, None]
    image, explained = project(features)
    pca = PCA(3).fit(features.flatten(1).T.numpy())
    for i, (component, direction) in enumerate(zip(pca.transform(features.flatten(1).T.numpy()).T, pca.components_)):
        if direction[np.abs(direction).argmax()] < 0:
            component = -component
        low, high = np.percentile(component, [1, 99])
        wanted = 255 * ((component - low) / (high - low)).clip(0, 1)
        assert np.abs(image[..., i].ravel() - wanted).max() <= 1
    assert abs(explained - pca.explained_variance_ratio_.sum()) < 1e-5


def test_what_has_no_components():
    assert project(torch.ones(4, 3, 3))[0].tolist() == np.zeros((3, 3, 3)).tolist()
    image, explained = project(torch.tensor([[[0.0, 1.0]], [[0.0, 2.0]]]))  # two positions: one component
    assert explained > 0.999 and image[0, :, 0].tolist() == [0, 255]
    assert image[..., 1].max() == image[..., 2].max() == 0


def test_one_position():
    assert project(torch.randn(8, 1, 1))[0].tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize('size', [(360, 480), (97, 161), (800, 1344), (64, 64)])
def test_strides(size):
    """Of maps whose sides are rounded up."""
    for stride in (4, 8, 16, 32):
        sides = (-(-size[0] // stride), -(-size[1] // stride))
        assert _find_stride(torch.zeros(1, 3, *size), torch.zeros(1, 5, *sides)) == stride
    assert _find_stride(torch.zeros(1, 3, 98, 98), torch.zeros(1, 5, 5, 5)) == 20


def test_names_with_dollars(tmp_path):
    """They are no formulas."""
    image = np.zeros((8, 8, 3), np.uint8)
    picture = Picture(Path('cost_$5_$6.jpg'), image, torch.zeros(1, 3, 8, 8), {}, (8, 8), (8, 8))
    plot_pyramid([(picture, [[Level('backbone, stride 4', image, 0.5)]])], 'a_$1_$2', tmp_path / 'a.png')
    assert (tmp_path / 'a.png').is_file()
