"""The learner: DeepSpeed ranks on Ray, models, weights out, checkpoints, the tiny policy."""
