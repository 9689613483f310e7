"""The faults planted in the arithmetic of memory."""

SIZES, PASSES = "scaling/architecture.py", "scaling/activations.py"
BACKENDS, ESTIMATE, ADVICE = "scaling/backends.py", "scaling/estimate.py", "scaling/advice.py"

GOLDEN, COMMAND = "tests/golden/test_scaling.py", "tests/unit/test_scaling_command.py"
SCALING_TESTS = {
    SIZES: (GOLDEN,),
    PASSES: (GOLDEN,),
    BACKENDS: (GOLDEN,),
    ESTIMATE: (GOLDEN,),
    ADVICE: (COMMAND,),
}

# (file under rlvr/, old text, new text, description)
SCALING_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (SIZES, "(1 if sizes.tied else 2) + sizes.hidden", "2 + sizes.hidden", "parameters: a tied head counted"),
    (SIZES, "rank * (n + m)", "rank * (n * m)", "adapters: of the size of the map"),
    (SIZES, "2 * sizes.head_dim if", "sizes.head_dim if", "parameters: one head norm"),
    (PASSES, "2 * (FULL + work.weight_bytes) * h + (", "(FULL + work.weight_bytes) * h + (", "layer: one norm"),
    (PASSES, "norms = 2 * FULL * h + FULL * heads", "norms = 2 * FULL * h", "layer: no head norms under LoRA"),
    (PASSES, "+ FULL * sizes.heads + HALF * work.length", "+ FULL * sizes.heads", "layer: no mask"),
    (PASSES, "if work.checkpointing else layer_saved", "if not work.checkpointing else layer_saved", "swapped"),
    (
        PASSES,
        "min(work.batch * work.completion_length, default",
        "max(work.batch * work.completion_length, default",
        "head: logits of all tokens",
    ),
    (PASSES, "return 8 * states + FULL * ends + max(", "return 8 * states + max(", "head: no sum of its gradient"),
    (
        PASSES,
        "(sizes.layers + 1) * 2 * sizes.key",
        "(sizes.layers + 1) * 2 * sizes.query",
        "cache: of every query head",
    ),
    (PASSES, "work.rollout_rows * work.length)", "work.batch * work.length)", "cache: of one micro-batch"),
    (BACKENDS, "states=2 * t * count.trained", "states=t * count.trained", "one optimiser state"),
    (BACKENDS, "linear * NF4", "linear * HALF", "quantised weights in 16 bits"),
    (BACKENDS, "replace(alone, buckets=alone.gradients)", "replace(alone, buckets=0.0)", "DDP without buckets"),
    (
        BACKENDS,
        "reference=HALF * count.reference / gpus",
        "reference=HALF * count.reference",
        "ZeRO-3: whole reference",
    ),
    (BACKENDS, "gathered_rollout=HALF * whole if", "gathered_rollout=gathered if", "ZeRO-3: never gathered to sample"),
    (
        BACKENDS,
        "weights=count.frozen_bytes / gpus + FULL * part",
        "weights=count.frozen_bytes / gpus + HALF * part",
        "FSDP2: bfloat16 weights",
    ),
    (BACKENDS, "gathered = HALF * (2 * layer + ends)", "gathered = HALF * (layer + ends)", "FSDP2: nothing ahead"),
    (BACKENDS, "(4 * FULL + HALF) * count.trained", "3 * FULL * count.trained", "offload: no gradients"),
    (ESTIMATE, "return max(moments", "return min(moments", "loss: the emptiest moment"),
    (
        ESTIMATE,
        "if work.checkpointing else passes.layer_gradients",
        "if False else passes.layer_gradients",
        "loss: top",
    ),
    (ESTIMATE, "if work.accumulation > 1 else 0.0", "if work.accumulation > 99 else 0.0", "loss: no earlier gradients"),
    (ESTIMATE, "gradients=held.gradients, working=held.working", "gradients=held.gradients", "optimiser: no temporary"),
    (ESTIMATE, "return work if BACKENDS", "return work if not BACKENDS", "the dtype kept by the wrong backends"),
    (ADVICE, "USABLE = 0.9", "USABLE = 1.0", "no room is left"),
    (ADVICE, "not updates_in_float32(each.work", "updates_in_float32(each.work", "rounding preferred"),
    (ADVICE, '(backend == "single" and gpus > 1)', "False", "one GPU of many"),
    (ADVICE, "yield from list(halvings(work))[1:]", "yield from list(halvings(work))", "a remedy that changes nothing"),
)
