"""The diagonality-preserving loss."""

import literal
import pytest
import torch

from mmlavit.models import Scores, diagonality_loss, score_statistics, square_scores
from mmlavit.models.diagonality import share_inside


def by_loop(scores, inside=None):
    """The formula for one matrix, element by element."""
    size = len(scores)
    share = [1.0] * size if inside is None else inside.tolist()
    pairs = [(i, j, share[i] * share[j]) for i in range(size) for j in range(size)]
    total = sum(weight for _, _, weight in pairs)
    centre = sum(weight * scores[i, j] for i, j, weight in pairs) / total
    deviation = (sum(weight * (scores[i, j] - centre) ** 2 for i, j, weight in pairs) / total) ** 0.5
    scores = scores / deviation
    asymmetry = sum(weight * abs(scores[i, j] - scores[j, i]) for i, j, weight in pairs) / total
    others = [(i, j, weight) for i, j, weight in pairs if i != j]
    excess = sum(weight * max(scores[i, j] - scores[i, i], 0) for i, j, weight in others)
    return deviation / (deviation + 0.1) * (asymmetry + excess / sum(weight for _, _, weight in others))


def symmetric_dominant(size=6):
    scores = torch.rand(size, size, dtype=torch.float64)
    return scores + scores.T + 3 * torch.eye(size, dtype=torch.float64)


def test_equals_the_loop():
    scores = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = sum(by_loop(scores[b, h]) for b in range(2) for h in range(3)) / 6
    torch.testing.assert_close(diagonality_loss(scores), torch.as_tensor(expected), rtol=0, atol=1e-12)


def test_zero_for_symmetric_and_dominant():
    assert diagonality_loss(symmetric_dominant()) == 0


def test_positive_if_not_symmetric():
    scores = symmetric_dominant()
    scores[0, 1] -= 0.1
    assert diagonality_loss(scores) > 0


def test_positive_if_the_diagonal_does_not_dominate():
    scores = symmetric_dominant()
    scores[2, 3] = scores[3, 2] = scores[2, 2] + 0.1
    assert diagonality_loss(scores) > 0


def test_equals_the_loop_with_padding():
    scores, inside = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64)
    expected = sum(by_loop(scores[b, h], inside[b]) for b in range(2) for h in range(3)) / 6
    torch.testing.assert_close(diagonality_loss(scores, inside), torch.as_tensor(expected), rtol=0, atol=1e-12)


def test_padding_does_not_count():
    scores = torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    loss = diagonality_loss(scores, torch.tensor([1.0] * 5 + [0.0] * 4).expand(2, 9))
    torch.testing.assert_close(loss, diagonality_loss(scores[..., :5, :5]), rtol=0, atol=1e-12)
    loss.backward()
    assert not scores.grad[..., 5:, :].any() and not scores.grad[..., 5:].any() and scores.grad.any()


def test_share_inside_is_that_of_the_pixels():
    """A batch of 56x70 pixels on a grid of 7x5, counted pixel by pixel."""
    sizes = [(56, 70), (30, 43), (8, 1)]
    inside = share_inside(torch.tensor([(h / 56, w / 70) for h, w in sizes], dtype=torch.float64), (7, 5))
    for share, (height, width) in zip(inside, sizes):
        pixels = torch.zeros(56, 70, dtype=torch.float64)
        pixels[:height, :width] = 1
        expected = [pixels[8 * i : 8 * i + 8, 14 * j : 14 * j + 14].mean() for i in range(7) for j in range(5)]
        torch.testing.assert_close(share, torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize('factor', [1e-6, 0.5, 1e3])
def test_the_gradient_of_small_scores_is_bounded(factor):
    """That of scores with deviation d goes as 1 / (d + 0.1), and not as 1 / d."""
    scores = torch.randn(9, 9, dtype=torch.float64)
    small = (factor * scores).requires_grad_()
    scores.requires_grad_()
    diagonality_loss(scores).backward()
    diagonality_loss(small).backward()
    deviation = scores.detach().std(correction=0)
    ratio = (deviation + 0.1) / (factor * deviation + 0.1)
    torch.testing.assert_close(small.grad, ratio * scores.grad)


def test_gradient_does_not_shrink_the_scores():
    scores = torch.randn(4, 9, 9, dtype=torch.float64, requires_grad=True)
    diagonality_loss(scores).backward()
    along = (scores.grad * scores).sum(dim=(1, 2))
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)
    assert scores.grad.abs().max() > 1e-3


def test_rounding_noise_of_constant_scores_has_no_large_gradient():
    """A few units in the last place, whose inverse is 1e7."""
    noise = 1e-7 * torch.randn(1, 9, 9)
    scores = (0.3 + noise).requires_grad_()
    assert scores.detach().std() > 1e-8
    loss = diagonality_loss(scores)
    loss.backward()
    assert 0 < loss < 1e-5
    assert scores.grad.abs().max() < 2


def test_one_key_costs_nothing():
    scores = torch.randn(2, 3, 1, 1, requires_grad=True)
    loss = diagonality_loss(scores)
    loss.backward()
    assert loss == 0
    assert not scores.grad.any()


@pytest.mark.parametrize(
    ('query_grid', 'key_grid', 'grid'),
    [((14, 14), (7, 7), (7, 7)), ((8, 12), (2, 3), (2, 3)), ((30, 12), (15, 6), (7, 6))],
    ids=['reference', 'small', 'mixed'],
)
def test_square_scores_are_literal_averages(query_grid, key_grid, grid):
    heads, n = 2, query_grid[0] * query_grid[1]
    scores = torch.randn(3, n, heads * 49, dtype=torch.float64)
    square = square_scores(Scores(scores, heads, query_grid), key_grid, (7, 7))
    rows, cols = literal.grid_matrix(query_grid, grid), literal.grid_matrix((7, 7), grid)
    for b in range(3):
        for h in range(heads):
            expected = rows @ scores[b, :, 49 * h : 49 * (h + 1)] @ cols.T
            torch.testing.assert_close(square[b, h], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_scores_in_half_precision_are_averaged_in_single(dtype):
    """Scores that hardly differ beside what they have in common, which a mean in half precision would round."""
    scores = (10 + 0.1 * torch.randn(2, 24 * 24, 2 * 49, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = square_scores(Scores(scores, 2, (24, 24)), (8, 8), (7, 7))
    expected = square_scores(Scores(scores.double(), 2, (24, 24)), (8, 8), (7, 7))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)


def test_statistics():
    scores = torch.tensor([[0.0, 0.0], [2.0, -2.0]])
    magnitude, entropy = score_statistics(scores)
    assert magnitude == 1
    p = torch.tensor([4.0, 0.0]).softmax(0)
    expected = (torch.log(torch.tensor(2.0)) - (p * p.log()).sum()) / 2
    torch.testing.assert_close(entropy, expected)
