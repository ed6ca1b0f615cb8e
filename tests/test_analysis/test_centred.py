"""Scores without the part that softmax takes away, against a literal formula."""

import torch
from literal import grid_matrix

from mmlavit import LaViT
from mmlavit.analysis.centred import CentredLaViT
from mmlavit.models.observation import observe_attention


def observe(model, images):
    seen = {}
    with torch.no_grad(), observe_attention(model, lambda now: seen.setdefault(now.name, now.scores)):
        maps = model(images)
    return maps, seen


def test_scores():
    torch.manual_seed(0)
    model = CentredLaViT('nano').eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain = LaViT('nano').eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 128, 128)
    (maps, ours), (_, theirs) = observe(model, images), observe(plain, images)
    for name, scores in ours.items():
        assert scores.mean(-1).abs().max() < 1e-4 * scores.abs().max(), name
    # The first layer is vanilla: the same attention, whose scores differ by a number for each query.
    first = 'stages.0.blocks.0'
    torch.testing.assert_close(ours[first].softmax(-1), theirs[first].softmax(-1))
    assert theirs[first].mean(-1).abs().max() > 1e-2
    # The second is Psi A Theta^T of these, with all columns of Theta adding up to one.
    attn = model.stages[0].blocks[1].attn
    theta = torch.eye(16) + attn.delta_theta - attn.delta_theta.mean(0)
    torch.testing.assert_close(theta.sum(0), torch.ones(16))
    up, down = grid_matrix((4, 4), (32, 32)).float(), grid_matrix((32, 32), (4, 4)).float()
    psi = torch.eye(1024) + up @ attn.delta_psi @ down
    centred = theirs[first] - theirs[first].mean(-1, keepdim=True)
    torch.testing.assert_close(ours['stages.0.blocks.1'], psi @ centred @ theta.T, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(maps[-1], plain(images)[-1], atol=1e-3)
