"""How good a policy is: sampling held-out prompts, unbiased estimators, intervals."""
