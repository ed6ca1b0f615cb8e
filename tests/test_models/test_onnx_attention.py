"""Attention in pieces, for graphs of ONNX."""

import pytest
import torch

from mmlavit import LaViT
from mmlavit.models.onnx_attention import attend_in_pieces, is_traced_for_onnx, tracing_for_onnx


@pytest.mark.parametrize('pieces', [1, 4])
def test_formula(pieces):
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 3, 8, 5), torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 6)
    out = attend_in_pieces(query, key, value, pieces)
    assert out.shape == (2, 3, 8, 6)
    for image in range(2):
        for head in range(3):
            for index in range(8):
                weights = (key[image, head] @ query[image, head, index]).exp()
                expected = (weights[:, None] * value[image, head]).sum(0) / weights.sum()
                torch.testing.assert_close(out[image, head, index], expected)
    torch.library.opcheck(attend_in_pieces, (query, key, value, pieces), test_utils=('test_schema', 'test_faketensor'))


def test_only_on_the_way_to_onnx():
    """Other exports keep torch's operator, which has fused kernels."""
    model = LaViT('nano', out_indices=(0,)).eval()
    example = (torch.rand(1, 3, 64, 64),)
    ours, torchs = torch.ops.mmlavit.attend_in_pieces.default, torch.ops.aten.scaled_dot_product_attention.default

    def targets():
        return {node.target for node in torch.export.export(model, example).graph.nodes} & {ours, torchs}

    assert targets() == {torchs}
    with tracing_for_onnx():
        assert targets() == {ours}
    with pytest.raises(KeyError), tracing_for_onnx():
        raise KeyError
    assert not is_traced_for_onnx()
    assert targets() == {torchs}
