"""The LaViT backbone and its parts."""

from .arch import ARCH_ZOO, Arch
from .diagonality import diagonality_loss, score_statistics, square_scores
from .lavit import AttentionResidual, LaViT, LessAttention, VanillaAttention
from .layout import Scores
from .plain_vit import WithLessAttention
from .resample import resample_matrix, resample_tokens

__all__ = [
    'ARCH_ZOO',
    'Arch',
    'AttentionResidual',
    'LaViT',
    'LessAttention',
    'Scores',
    'VanillaAttention',
    'WithLessAttention',
    'diagonality_loss',
    'resample_matrix',
    'resample_tokens',
    'score_statistics',
    'square_scores',
]
