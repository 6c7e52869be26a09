"""The three stages of HAM (paper, Algorithm 1): pretrain, search, retrain. Each file reads top to bottom."""
