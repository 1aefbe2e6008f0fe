"""Claims of answers: their types and files, how answers are divided, and the cache of labels."""
