"""The faults planted in operations on checkpoints, in the rules of what is copied, and in what is written."""

OPERATIONS, RULES = "extrapolation/operations.py", "extrapolation/rules.py"
SOURCES, WRITING = "extrapolation/sources.py", "extrapolation/writing.py"
FILE, FOLDER = "extrapolation/safetensors_file.py", "extrapolation/output_folder.py"
RUNNING, PERIODIC = "extrapolation/running.py", "extrapolation/periodic.py"

GOLDEN = ("tests/golden/test_extrapolation.py",)
FILES = ("tests/unit/test_extrapolation_writing.py", "tests/unit/test_extrapolation_failures.py")
EXTRAPOLATION_TESTS = {
    OPERATIONS: GOLDEN,
    RULES: FILES,
    SOURCES: FILES,
    WRITING: FILES,
    FILE: FILES,
    FOLDER: FILES,
    RUNNING: ("tests/unit/test_extrapolation_commands.py",),
    PERIODIC: ("tests/unit/test_periodic_jumps.py",),
}

# (file under rlvr/, old text, new text, description)
EXTRAPOLATION_FAULTS: tuple[tuple[str, str, str, str], ...] = (
    (OPERATIONS, "    if alpha == 0.0:\n        return base\n", "", "extrapolate: alpha 0 not special"),
    (OPERATIONS, "    if alpha == 1.0:\n        return tuned\n", "", "extrapolate: alpha 1 not special"),
    (OPERATIONS, "torch.lerp(base.to(dtype), tuned.to(dtype), alpha)", "torch.lerp(base, tuned, alpha)", "bf16 sums"),
    (
        OPERATIONS,
        "torch.lerp(base.to(dtype), tuned.to(dtype), alpha)",
        "torch.lerp(tuned.to(dtype), base.to(dtype), alpha)",
        "extrapolate: from the tuned model",
    ),
    (
        OPERATIONS,
        "torch.lerp(base.to(dtype), tuned.to(dtype), alpha)",
        "tuned.to(dtype) + alpha * (tuned.to(dtype) - base.to(dtype))",
        "extrapolate: alpha counted from the tuned model",
    ),
    (OPERATIONS, "    if not abs(sum(weights) - 1.0) <=", "    if abs(sum(weights) - 1.0) >", "average: NaN passes"),
    (OPERATIONS, "key=lambda index: weights[index])", "key=lambda index: -weights[index])", "combined: wrong anchor"),
    (OPERATIONS, "alpha=weight)", "alpha=abs(weight))", "combined: negative weights"),
    (OPERATIONS, "(at - middle) * x / spread", "at * x / spread", "line: from step 0"),
    (OPERATIONS, "(at - middle) * x / spread", "(at - steps[-1]) * x / spread", "line: from the newest step"),
    (OPERATIONS, "weights, torch.float64)", "weights, torch.float32)", "line: in float32"),
    (OPERATIONS, "1.0 - residual / total if", "residual / total if", "R^2: the rest"),
    (OPERATIONS, "if total > 0.0 else 1.0", "if total > 0.0 else 0.0", "R^2: of what never moved"),
    (OPERATIONS, "total += float(deviation.square()", "total = float(deviation.square()", "R^2: total of one step"),
    (OPERATIONS, "deviations = [move - mean for move in moves]", "deviations = moves", "R^2: from the newest"),
    (OPERATIONS, "len(steps) < 3 or ", "", "line: through 2 points"),
    (OPERATIONS, "shares = values / values.sum()", "shares = values**2 / (values**2).sum()", "timber: squares"),
    (OPERATIONS, "math.ceil(math.exp(", "math.floor(math.exp(", "timber: rank rounded down"),
    (OPERATIONS, "alpha=1.0 - keep", "alpha=keep", "timber: share inverted"),
    (
        OPERATIONS,
        "(left[:, rank:] * values[rank:]) @ right[rank:]",
        "(left[:, :rank] * values[:rank]) @ right[:rank]",
        "head",
    ),
    (OPERATIONS, "base.dim() != 2 or keep", "keep", "timber: vectors decomposed"),
    (
        RULES,
        "    for pattern, alpha in rules.alphas:",
        "    for pattern, alpha in rules.alphas[::-1]:",
        "last alpha wins",
    ),
    (
        RULES,
        "(names, pattern):\n            return Treatment(pattern, copied=True)",
        "(names, pattern):\n            return Treatment(pattern, copied=False)",
        "rules: --copy does not copy",
    ),
    (RULES, "[name.lower() for name in names]", "names", "rules: case of norms"),
    (RULES, "names[name].append(alias)", "pass", "rules: aliases are not matched"),
    (RULES, '    ("embeddings", ("*embed*", "*wte*", "*wpe*")),\n', "", "rules: embeddings extrapolated"),
    (RULES, "if not (dtype.is_floating_point or dtype.is_complex):", "if False:", "rules: integers moved"),
    (SOURCES, "extra = [name for name in other.names() if name not in found]", "extra = []", "sources: extra tensors"),
    (SOURCES, "if not _equal(other, name, found[tied[name]]):", "if False:", "sources: untied base passes"),
    (SOURCES, 'else aliases.get(name, "")', 'else ""', "sources: aliases of the base"),
    (SOURCES, "if tuned.shape != other.shape:", "if len(tuned.shape) != len(other.shape):", "sources: other shapes"),
    (SOURCES, "range(0, count, rows)", "range(0, count - rows, rows)", "sources: last rows forgotten"),
    (WRITING, "result = result.to(info.dtype)", "result = result.bfloat16().to(info.dtype)", "writing: cast twice"),
    (
        WRITING,
        "    if info.dtype.is_floating_point and not _is_finite(result):",
        "    if False:",
        "writing: NaN passes",
    ),
    (WRITING, " or bool(torch.isfinite(tensor).all())", "", "writing: large values refused"),
    (WRITING, "for name, fit in fits.items() if fit < min_r2", "for name, fit in fits.items() if fit > min_r2", "gate"),
    (WRITING, "if len(shards) > 1:", "if len(shards) > 2:", "writing: no index"),
    (FILE, 'text += b" " * (-len(text) % ALIGNMENT)', 'text += b""', "file: header not aligned"),
    (FILE, "(-infos[name].dtype.itemsize, name)", "name", "file: values not aligned"),
    (FILE, "size + num_bytes(info) > max_bytes", "size > max_bytes", "file: shards too large"),
    (FOLDER, 'hidden = final.with_name(f".{final.name}{SUFFIX}")', "hidden = final", "folder: written in the open"),
    (FOLDER, "        shutil.rmtree(hidden, ignore_errors=True)\n", "        pass\n", "folder: left after an error"),
    (FOLDER, "FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)", "FULL = ()", "folder: full disk not told"),
    (FOLDER, "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "folder: no lock"),
    (FOLDER, "if free < num_bytes:", "if False:", "folder: disk not looked at"),
    (RUNNING, "(at_step - start) / (end - start)", "at_step / end", "running: alpha from step 0"),
    (
        RUNNING,
        "sorted(zip(steps, views, strict=True), key=lambda pair: pair[0])",
        "zip(steps, views, strict=True)",
        "order",
    ),
    (PERIODIC, "extrapolate(start.to(end.device), end,", "extrapolate(end, start.to(end.device),", "jump: backwards"),
    (PERIODIC, "if not treatment.copied}", "}", "jump: rules ignored"),
    (PERIODIC, "mul_(beta1**steps)", "mul_(beta1)", "moments: aged by one step"),
    (PERIODIC, '("exp_avg", "exp_avg_sq", "step")', '("exp_avg", "exp_avg_sq")', "moments: step not reset"),
    (
        PERIODIC,
        "        for name, start in self._start.items():\n            start.copy_(self._weights.read(name))\n",
        "",
        "jump: next phase starts before it",
    ),
    (
        PERIODIC,
        "            start.copy_(end)\n            self._weights.write(name, reached)\n",
        "            self._weights.write(name, reached)\n",
        "undo: back to the start of the phase",
    ),
    (PERIODIC, "if after < before:", "if after <= before:", "undo: as good is undone"),
    (PERIODIC, "self.load_state_dict(read_tensors(", "(lambda _: None)(read_tensors(", "resume: start not restored"),
    (
        PERIODIC,
        "        self._weights.publish()\n        self.host.forget_rollouts()\n\n    def _go_back",
        "        self._weights.publish()\n\n    def _go_back",
        "jump: rollouts kept",
    ),
)
