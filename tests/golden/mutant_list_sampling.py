"""The faults planted in dynamic sampling."""

DYNAMIC, GROUPS, STAGE = "sampling/dynamic.py", "sampling/groups.py", "guidance/stage.py"
UNIT = ("tests/unit/test_dynamic_sampling.py",)
SAMPLING_TESTS = {DYNAMIC: UNIT, GROUPS: UNIT, STAGE: UNIT}

# (file under rlvr/, old text, new text, description)
SAMPLING_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (
        DYNAMIC,
        "        if has_signal(group.outcomes):\n            return False\n",
        "",
        "prompts with signal make room",
    ),
    (DYNAMIC, "rate > self.left_to_guidance", "rate >= self.left_to_guidance", "what is to be helped makes room"),
    (DYNAMIC, "rate is None or rate >", "rate is not None and rate >", "prompts without verdicts stay"),
    (
        DYNAMIC,
        "        seen = {group.prompt_id for group in groups}\n",
        "        seen = set[int]()\n",
        "drawn twice in a step",
    ),
    (DYNAMIC, '            seen |= {row["prompt_id"] for row in rows}\n', "", "drawn again in the next round"),
    (DYNAMIC, "/dynamic/{step}", "/dynamic", "steps draw alike"),
    (DYNAMIC, '"{self.seed}/dynamic', '"dynamic', "seeds draw alike"),
    (DYNAMIC, "replace(now, plain=scored)", "now", "pass rates are of the prompts that were kept"),
    (DYNAMIC, "count = min(count, self.num_prompts - len(seen))", "", "draws without end"),
    (DYNAMIC, "for group in left if group.prompt_id not in accepted", "for group in left", "exchanged again and again"),
    (DYNAMIC, "if has_signal([found[p][0] for p in group.places])", "", "whatever was drawn is kept"),
    (DYNAMIC, "owners[row][0].prompt_id in accepted", "True", "what has no signal is put in too"),
    (DYNAMIC, "take(verdicts, kept)", "take(verdicts, range(len(kept)))", "verdicts of other rows"),
    (DYNAMIC, "        prompt_ids=rollouts.context_ids,\n", "", "the tokens of the prompt of before"),
    (
        DYNAMIC,
        "        columns={name: [row[name] for row in rows] for name in rollouts.columns},\n",
        "",
        "the answer of the prompt of before",
    ),
    (DYNAMIC, 'group_ids=[row["prompt_id"] for row in rows]', "group_ids=rollouts.group_ids", "ids of before"),
    (DYNAMIC, 'counts["extra_rollouts"] += len(found)', 'counts["extra_rollouts"] += len(mine)', "counts of one rank"),
    (DYNAMIC, "place - first: pair", "place: pair", "rows of another rank"),
    (GROUPS, "return 0 in outcomes and 1 in outcomes", "return len(set(outcomes)) > 1", "no verdict counts as another"),
    (STAGE, "plain=scored.unhelped", "plain=scored", "guidance forgets the prompts that came first"),
)
