"""Well-known data sets: where they are published, and which of their columns hold what.

`data.preset=NAME` takes a row of this table; keys that are given beside it win. The shapes are
those of the data sets' cards on the Hugging Face hub.
"""

from typing import Any

# The verifier reads what stands in a box first, and takes it for the whole answer.
_BOXED = "{{question}}\n\nPut the final answer in \\boxed{}."
_SHORT = "{{question}}\n\nAnswer with a single word, number or phrase."

PRESETS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "path": "openai/gsm8k",
        "subset": "main",
        "heldout_split": "test",
        "columns": {"question": "question", "reference": "answer"},
        "template": _BOXED,
    },
    "math": {
        "path": "DigitalLearningGmbH/MATH-lighteval",
        "heldout_split": "test",
        "columns": {"question": "problem", "reference": "solution"},
        "template": _BOXED,
    },
    # The original file and the processed copy both have these two columns; the copy holds each
    # question once, and its questions are text without an instruction.
    "dapo-17k": {
        "path": "open-r1/DAPO-Math-17k-Processed",
        "subset": "all",
        "columns": {"question": "prompt", "reference": "reward_model.ground_truth"},
        "template": _BOXED,
    },
    "geo3k": {
        "path": "hiyouga/geometry3k",
        "heldout_split": "test",
        "columns": {"question": "problem", "reference": "answer", "images": "images"},
        "template": _BOXED,
    },
    "mmk12": {
        "path": "FanqingM/MMK12",
        "heldout_split": "test",
        "columns": {"question": "question", "reference": "answer", "images": "image"},
        "template": _BOXED,
    },
    "virl39k": {
        "path": "TIGER-Lab/ViRL39K",
        "columns": {"question": "question", "reference": "answer", "images": "image"},
        "template": _BOXED,
    },
    "docvqa": {
        "path": "HuggingFaceM4/DocumentVQA",
        "heldout_split": "validation",
        "columns": {"question": "question", "reference": "answers", "images": "image"},
        "task": "anls",
        "template": _SHORT,
    },
    "chartqa": {
        "path": "HuggingFaceM4/ChartQA",
        "heldout_split": "val",
        "columns": {"question": "query", "reference": "label", "images": "image"},
        "task": "relaxed",
        "template": _SHORT,
    },
    # Answers in natural language, which the probability reward scores.
    "rlpr": {
        "path": "openbmb/RLPR-Train-Dataset",
        "columns": {"messages": "prompt", "reference": "reward_model.ground_truth"},
        "task": "probability",
    },
    "rlaif-v": {
        "path": "openbmb/RLAIF-V-Dataset",
        "columns": {"question": "question", "reference": "chosen", "images": "image"},
        "task": "probability",
    },
}
