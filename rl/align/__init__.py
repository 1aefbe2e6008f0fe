"""The RLAIF-V pass (https://arxiv.org/abs/2405.17220) on Ray, vLLM and DeepSpeed.

    policy -> responses -> claims, labels -> pairs -> aligned policy -> verdict
            sampling       judging        pairing  policy/dpo        gate

Each stage is a function from values to values in a file of that name. iterations.py calls them in
this order and keeps what they return in the directory of the pass (directory.py): a stage that is
there is not done again, and of one that was cut short only the rest is. Engines, labeller and
learner run one after the other on the same resources, which stay reserved for the whole pass.
"""
