"""The three stages of HAM (paper, Algorithm 1): pretrain, search and retrain; and slicing between them."""
