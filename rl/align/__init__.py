"""The RLAIF-V pass (https://arxiv.org/abs/2405.17220) on Ray, vLLM and DeepSpeed.

    policy -> responses -> claims -> labels -> pairs -> DPO -> gate -> checkpoint      an iteration
            sampling       judging           pairs    learning  gate    iterations

Each stage leaves a file (directory.py); what is there is not done again, and of a stage that was
cut short only the rest is. Engines, labeller and learner run one after the other on the same
places, which stay reserved. `rl/align` is the command.
"""
