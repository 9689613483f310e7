"""Corrections for a sampling engine whose probabilities are not the trainer's.

With rho_t = exp(old_logprobs_t - sampling_logprobs_t), both frozen, every rule gives a constant weight per token for
the policy loss (not for the KL penalty); importance weights presuppose that engine and trainer apply the same
temperature and that the engine samples from the full vocabulary. Tensors are [B, T], `mask` bool with True = loss
token. A token without a sampling log-prob (NaN) counts as rho = 1. What stands at masked positions does not enter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_LIMIT = 20.0  # bound on log rho, of a token or summed over a completion, inside an exponential
IMPOSSIBLE = 1e4  # stands for an infinite log rho, so that a sum has no inf - inf


@dataclass(frozen=True)
class MismatchSettings:
    """Bounds on rho, on its product or on its geometric mean, as the rule says."""

    low: float
    high: float


@dataclass(frozen=True)
class Correction:
    """What multiplies the policy loss, and which loss tokens are left."""

    weights: Tensor  # [B, T] without gradient; 0 = dropped, and at masked positions
    keep_mask: Tensor  # [B, T] bool: loss tokens that were not dropped


def _measured(old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Loss tokens [B, T] with a sampling log-prob."""
    return mask & ~torch.isnan(old_logprobs - sampling_logprobs)


def _log_rho(old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log rho_t [B, T] without gradient; 0 where it is not measured."""
    difference = (old_logprobs - sampling_logprobs).detach().clamp(-IMPOSSIBLE, IMPOSSIBLE)
    return torch.where(_measured(old_logprobs, sampling_logprobs, mask), difference, 0.0)


def _bounded_exp(log_values: Tensor) -> Tensor:
    return torch.exp(log_values.clamp(-LOG_LIMIT, LOG_LIMIT))


def _correction(weights: Tensor, measured: Tensor, mask: Tensor) -> Correction:
    """The weights where something was measured (`measured` [B, T] or [B, 1]), 1 elsewhere; 0 at masked positions."""
    weights = torch.where(mask, torch.where(measured, weights, 1.0), 0.0)
    return Correction(weights, mask & (weights > 0))


def _within(values: Tensor, settings: MismatchSettings) -> Tensor:
    return (values >= settings.low) & (values <= settings.high)


def no_correction(
    old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, settings: MismatchSettings
) -> Correction:
    """Weight 1 on every loss token. Assumes that the engine's probabilities are the trainer's, to rounding."""
    return Correction(mask.to(old_logprobs.dtype), mask)


def token_tis(old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, settings: MismatchSettings) -> Correction:
    """clamp(rho_t, low, high): truncated importance sampling (Ionides 2008) per token.

    Assumes, as token ratios do, that what came before the token was about as likely under both; the truncation trades
    bias for a bounded variance.
    """
    rho = _bounded_exp(_log_rho(old_logprobs, sampling_logprobs, mask))
    return _correction(rho.clamp(settings.low, settings.high), _measured(old_logprobs, sampling_logprobs, mask), mask)


def sequence_tis(
    old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, settings: MismatchSettings
) -> Correction:
    """min(prod_t rho_t, high) on every token of the completion: truncated importance sampling, Ionides 2008.

    The product is the true weight of a completion, so only the truncation biases. Assumes short completions: its
    variance grows with their length, and most weights of long ones are near 0 or at `high`. `low` has no effect.
    """
    log_rho = _log_rho(old_logprobs, sampling_logprobs, mask)
    product = _bounded_exp(log_rho.sum(dim=1, keepdim=True))
    measured = _measured(old_logprobs, sampling_logprobs, mask).any(dim=1, keepdim=True)
    return _correction(product.clamp(max=settings.high), measured, mask)


def icepop(old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, settings: MismatchSettings) -> Correction:
    """rho_t where low <= rho_t <= high, else 0: IcePop, arXiv 2510.18855.

    Assumes that a token outside the bounds is an error of the engine and carries no signal, so that dropping it is
    better than a capped weight.
    """
    rho = _bounded_exp(_log_rho(old_logprobs, sampling_logprobs, mask))
    return _correction(
        torch.where(_within(rho, settings), rho, 0.0), _measured(old_logprobs, sampling_logprobs, mask), mask
    )


def sequence_mask(
    old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, settings: MismatchSettings
) -> Correction:
    """prod_t rho_t on every token where low <= prod_t rho_t <= high, else 0: masked importance sampling, IcePop's rule
    (arXiv 2510.18855) on whole completions.

    Assumes that one bad token spoils its completion. The product drifts with length, so long completions are dropped
    first: read sampler/masked_frac.
    """
    log_rho = _log_rho(old_logprobs, sampling_logprobs, mask)
    product = _bounded_exp(log_rho.sum(dim=1, keepdim=True))
    measured = _measured(old_logprobs, sampling_logprobs, mask).any(dim=1, keepdim=True)
    return _correction(torch.where(_within(product, settings), product, 0.0), measured, mask)


def geometric(old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, settings: MismatchSettings) -> Correction:
    """1 on every token where low <= exp(mean_t log rho_t) <= high, else 0: rejection by the geometric mean, the
    length-normalised ratio of GSPO (arXiv 2507.18071) between engine and trainer.

    A filter and not a weight: it assumes that the completions it keeps are close enough to need none. Bounds do not
    depend on length; they lie near 1 (0.999 to 1.001).
    """
    log_rho = _log_rho(old_logprobs, sampling_logprobs, mask)
    mean = torch.exp(log_rho.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1))
    measured = _measured(old_logprobs, sampling_logprobs, mask).any(dim=1, keepdim=True)
    return _correction(_within(mean, settings).to(log_rho.dtype), measured, mask)


MISMATCH: dict[str, Callable[[Tensor, Tensor, Tensor, MismatchSettings], Correction]] = {
    "none": no_correction,
    "token_tis": token_tis,
    "sequence_tis": sequence_tis,
    "icepop": icepop,
    "sequence_mask": sequence_mask,
    "geometric": geometric,
}


def mismatch_metrics(
    old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, correction: Correction
) -> dict[str, Tensor]:
    """Sums over loss tokens, scalars, to be added up over micro-batches and ranks for `finish_mismatch_metrics`.

    num_tokens and masked (dropped by the correction) are of all loss tokens; num_measured, rho, rho_squared, |log rho|
    and k3 = rho - 1 - log rho of those with a sampling log-prob. They are of rho itself, before any correction, so that
    runs with different rules compare. Assumes samples of the engine: then k3 is Schulman's, unbiased for
    KL(sampler || trainer).
    """
    measured = _measured(old_logprobs, sampling_logprobs, mask)
    log_rho = _log_rho(old_logprobs, sampling_logprobs, mask).clamp(-LOG_LIMIT, LOG_LIMIT)
    rho = torch.where(measured, torch.exp(log_rho), 0.0)
    dtype = log_rho.dtype
    return {
        "num_tokens": mask.sum().to(dtype),
        "num_measured": measured.sum().to(dtype),
        "masked": (mask & ~correction.keep_mask).sum().to(dtype),
        "rho": rho.sum(),
        "rho_squared": rho.square().sum(),
        # expm1, because rho - 1 of a small log rho would be rounding in float32; 0 where nothing was measured.
        "k3": (torch.expm1(log_rho) - log_rho).sum(),
        "abs_log_rho": log_rho.abs().sum(),
    }


def mismatch_extremes(old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Maxima over the measured loss tokens, scalars, of log rho and of -log rho within [-20, 20]; 0 without any.

    To be combined by the maximum over micro-batches and ranks for `finish_mismatch_extremes`.
    """
    measured = _measured(old_logprobs, sampling_logprobs, mask)
    log_rho = _log_rho(old_logprobs, sampling_logprobs, mask).clamp(-LOG_LIMIT, LOG_LIMIT)[measured]
    if not len(log_rho):
        return {"log_rho": old_logprobs.new_zeros(()), "minus_log_rho": old_logprobs.new_zeros(())}
    return {"log_rho": log_rho.max(), "minus_log_rho": (-log_rho).max()}


def finish_mismatch_extremes(maxima: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """rho_min, rho_max, and the largest |log rho| of the whole step."""
    high, low = maxima["log_rho"], maxima["minus_log_rho"]
    return {
        "sampler/rho_max": high.exp(),
        "sampler/rho_min": (-low).exp(),
        "sampler/logprob_diff_max": torch.maximum(high, low),
    }


def finish_mismatch_metrics(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The metrics of the whole step, scalars, from its sums; where no token was measured, those of rho = 1.

    masked_frac = masked / n; rho_mean = sum rho / n; mismatch_kl = sum k3 / n; ess = (sum rho)^2 / (n sum rho^2), the
    effective sample size (Kish 1965) as a share of the tokens: 1 when all rho are equal; chi2 = sum rho^2 / n - 1, the
    chi-squared divergence of trainer from sampler. Assumes token weights; those of whole completions have a smaller
    effective sample size.
    """
    assumed = (sums["num_measured"] == 0).to(sums["rho"].dtype)  # one token of rho = 1 in place of none
    count, rho, rho_squared = sums["num_measured"] + assumed, sums["rho"] + assumed, sums["rho_squared"] + assumed
    return {
        "sampler/masked_frac": sums["masked"] / sums["num_tokens"].clamp(min=1.0),
        "sampler/ess": rho.square() / (count * rho_squared),
        "sampler/mismatch_kl": sums["k3"] / count,
        "sampler/rho_mean": rho / count,
        "sampler/chi2": rho_squared / count - 1.0,
        "sampler/logprob_diff_mean": sums["abs_log_rho"] / count,
    }
