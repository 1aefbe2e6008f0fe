"""Direct preference optimisation (https://arxiv.org/abs/2305.18290), on TRL's trainer.

pairs of token ids -> reference log-probabilities, once -> steps -> a model directory
"""

from policy.dpo.pairs import DpoPair
from policy.dpo.stage import train_dpo

__all__ = ["DpoPair", "train_dpo"]
