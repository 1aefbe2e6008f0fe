"""Text to scores: rules, format and repetition, each sample in a worker that can be killed."""
