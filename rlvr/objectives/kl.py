"""Estimators of the divergence between policy and reference, per token."""

import torch
from torch import Tensor


def k3_penalty(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = ref_logprobs - logprobs; all [B, T].

    Schulman's k3: its value is unbiased for KL(policy || reference) on samples of the policy and never negative; as a
    loss it has the gradient of KL(reference || policy).
    """
    difference = ref_logprobs.detach() - logprobs
    return torch.exp(difference) - difference - 1.0
