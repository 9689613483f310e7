"""Lp-Reg (arXiv 2510.03222): unlikely tokens that are not noise are kept alive in failed completions.

The proxy is the policy that sampled, without the tokens below a threshold, renormalised: with Z the mass it kept,
log proxy(o_t) = log pi_old(o_t) - log Z for a kept o_t, so that one scalar per token replaces a second forward pass.
"""

import logging

import torch
from torch import Tensor

from rlvr.config.regularizers import LpRegConfig
from rlvr.objectives.aggregation import aggregate
from rlvr.objectives.kl import LOG_LIMIT
from rlvr.objectives.regularizers.base import (
    Contribution,
    LiveTokens,
    Needs,
    Prepared,
    Regularizer,
    StepTokens,
    linear_quantile,
)
from rlvr.ops.token_stats import LOGPROBS, StatsRequest
from rlvr.schedule import value_at

logger = logging.getLogger(__name__)


def token_penalty(logprobs: Tensor, proxy_logprobs: Tensor, direction: str) -> Tensor:
    """One-token estimate of the divergence between proxy and policy; d = proxy_logprobs - logprobs within [-20, 20].

    forward: exp(d) - d - 1 (k3), whose expected gradient over the kept tokens is that of KL(proxy || policy) plus the
    policy's mass on them, the divergence of unnormalised distributions. reverse: d^2 / 2 (k2), whose expected gradient
    is that of the finite part of KL(policy || proxy), see `vocab_penalty` (arXiv 2506.09477).
    """
    difference = (proxy_logprobs.detach() - logprobs).clamp(-LOG_LIMIT, LOG_LIMIT)
    if direction == "forward":
        return torch.exp(difference) - difference - 1.0
    return 0.5 * difference.square()


def vocab_penalty(logprobs: Tensor, proxy_logprobs: Tensor, direction: str) -> Tensor:
    """The divergence itself, summed over the kept tokens: [m, C] with -inf for the proxy at padding; returns [m].

    forward: sum proxy (log proxy - log policy) = KL(proxy || policy). reverse: KL(policy || proxy) is infinite, as the
    proxy is 0 on filtered tokens; sum policy (log policy - log proxy) - policy + proxy over the kept ones is its finite
    part, never negative, and has the gradient that the token estimate has in expectation.
    """
    proxy_logprobs = proxy_logprobs.detach()
    is_kept = proxy_logprobs > -torch.inf
    logprobs = torch.where(is_kept, logprobs, 0.0)
    log_ratio = torch.where(is_kept, proxy_logprobs - logprobs, 0.0)
    proxy = proxy_logprobs.exp()
    if direction == "forward":
        return (proxy * log_ratio).sum(dim=-1)
    policy = torch.where(is_kept, logprobs.exp(), 0.0)
    return (proxy - policy - policy * log_ratio).sum(dim=-1)


def lowest(values: Tensor, share: float) -> Tensor:
    """The largest of the max(1, floor(share n)) smallest of values [n], n >= 1: a scalar to compare with by <=."""
    return values.kthvalue(max(1, int(share * len(values)))).values


class LpReg(Regularizer):
    """coef D(proxy, policy) on selected tokens, aggregated like the policy loss.

    A loss token is selected when A < 0, the proxy keeps it, its probability under the current weights is among the
    lowest `share`, and it is below the proxy's. The lowest are those of all loss tokens of the optimiser step on all
    ranks ("batch_all", the paper), or of the negative tokens of each micro-batch ("microbatch_neg", the released code,
    which does nothing in a micro-batch where that is a single token). The last condition is the released code's: it
    differs from the paper off-policy only, where the token's probability has risen above the proxy. On-policy the
    penalty pushes log pi of a selected token up by coef (1 / Z - 1), against the push of |A| down. Assumes that
    unlikely tokens above the threshold are reasoning and those below noise.
    """

    name = "lp_reg"

    def __init__(self, config: LpRegConfig) -> None:
        self.config = config
        min_p, fixed_p = (config.threshold, None) if config.proxy == "min_p" else (None, config.threshold)
        self.needs = Needs(
            sampled=StatsRequest(entropy=False, min_p=min_p, fixed_p=fixed_p),
            step=LOGPROBS,
            support=config.kl == "exact_vocab",
        )

    def coef_at(self, step: int) -> float:
        return value_at(self.config.coef, step)

    def prepare(self, tokens: StepTokens) -> Prepared:
        assert tokens.sampled.kept is not None
        assert tokens.sampled.log_kept_mass is not None
        # log Z is -inf where a fixed threshold keeps nothing; such a token is not kept, so its proxy is not used.
        log_mass = torch.where(tokens.sampled.kept, tokens.sampled.log_kept_mass, 0.0)
        proxy = tokens.old_logprobs - log_mass
        likely = tokens.current.logprobs
        selected = self._lowest(tokens) & (tokens.advantages < 0) & tokens.sampled.kept & (likely < proxy)
        push = tokens.gather(torch.expm1(-log_mass[selected]))
        if len(push) < 2:
            logger.warning(
                "lp_reg selected %d tokens at step %d, which is as good as off; raise regularizers.lp_reg.share or the"
                " number of completions of a step.",
                len(push),
                tokens.step + 1,
            )
        metrics = {"lp_reg/selected": float(len(push))}
        if len(push):
            for name, q in (("median", 0.5), ("p90", 0.9), ("max", 1.0)):
                metrics[f"lp_reg/push_{name}"] = linear_quantile(push, q).item()
            metrics["lp_reg/push_mean"] = push.mean().item()
        return Prepared(
            tokens={"selected": selected, "proxy": proxy},
            support_mask=selected if self.needs.support else None,
            metrics=metrics,
        )

    def _lowest(self, tokens: StepTokens) -> Tensor:
        """[R, T] loss tokens whose probability is among the lowest of the scope."""
        logprobs = tokens.current.logprobs
        if self.config.scope == "batch_all":
            pool = tokens.everywhere(logprobs)
            return tokens.mask & (logprobs <= lowest(pool, self.config.share)) if len(pool) else tokens.mask
        found = torch.zeros_like(tokens.mask)
        for number in tokens.microbatch_ids.unique():
            negative = tokens.mask & (tokens.advantages < 0) & (tokens.microbatch_ids == number).unsqueeze(1)
            if int(self.config.share * int(negative.sum())) >= 2:
                found |= negative & (logprobs <= lowest(logprobs[negative], self.config.share))
        return found

    def contribute(self, live: LiveTokens) -> Contribution:
        selected = live.mask & live.tokens["selected"]
        if self.config.kl == "k3_token":
            # Chosen before the exponential, so that NaN at other positions cannot reach the gradient.
            logprobs = torch.where(selected, live.stats.logprobs, 0.0)
            penalty = token_penalty(logprobs, torch.where(selected, live.tokens["proxy"], 0.0), self.config.direction)
        elif live.support is None:  # nothing is selected in this micro-batch
            penalty = torch.zeros_like(live.stats.logprobs)
        else:
            at_selected = vocab_penalty(live.support.policy, live.support.proxy, self.config.direction)
            penalty = torch.zeros_like(live.stats.logprobs).masked_scatter(selected, at_selected)
        return Contribution(loss=live.coef * aggregate(penalty, live.mask, live.denominator, live.aggregation))
