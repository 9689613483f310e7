"""The page of `rlvr report`: what is on it, and that nothing from a run gets into it as markup."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlvr.cli import app
from rlvr.reporting.report import watching
from rlvr.reporting.report.building import build_report
from tests.report_runs import FEW, HEALTHY, RECIPE, completion, evaluated, measured, write_completions, write_run

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\x1b]0;title\x07 {{ 7 * 7 }} &lt; \u202e"
)
# 20 prompts: 2 are won, 4 never solved, 2 lost, and 12 solved more often.
BEFORE = ["00000000"] * 6 + ["10000000"] * 2 + ["11110000"] * 8 + ["11000000"] * 4
AFTER = ["11110000"] * 2 + ["00000000"] * 6 + ["11111110"] * 12
EVALUATIONS = {
    "before": [evaluated("test", pass_at_1=(0.4, 0.36, 0.44), pass_at_8=(0.8, 0.7, 0.9))],
    "after": [evaluated("test", pass_at_1=(0.5, 0.47, 0.53), pass_at_8=(0.9, 0.8, 1.0))],
}


class Parsed(HTMLParser):
    """Elements, ids, and the text of every section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.missing: dict[str, str] = {}
        self._section, self._in_missing = "", False  # the text of cells is kept apart by |
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "section":
            self._section = found["id"] or ""
        self._in_missing = found.get("class") == "missing"
        if tag == "td":
            self.handle_data("|")

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._in_missing and data.strip():
            self.missing[self._section] = data

    @property
    def ids(self) -> list[str]:
        return [found["id"] or "" for _, found in self.tags if "id" in found]


def built(*folders: Path) -> tuple[str, Parsed]:
    output = folders[0] / "report.html"
    build_report(folders, output)
    html = output.read_text(encoding="utf-8")
    return html, Parsed(html)


def completions_of(html: str) -> list[str]:
    chunks = re.findall(r'<script type="text/plain" class="packed">([^<]*)</script>', html)
    columns = [json.loads(gzip.decompress(base64.b64decode(chunk))) for chunk in chunks]
    return [text for each in columns for text in each["completion"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Parsed]:
    evaluations = {"before": [measured("test", BEFORE)], "after": [measured("test", AFTER)]}
    folder = write_run(tmp_path_factory.mktemp("whole"), evaluations=evaluations)
    write_completions(folder, 1, [completion("four"), completion("five", 0.0, hint="think")])
    return built(folder)


def test_a_whole_run(whole: tuple[str, Parsed]) -> None:
    html, page = whole
    assert list(page.sections)[1:] == [
        "verdict",
        "alarms",
        "setup",
        "learning",
        "passk",
        "beyond",
        "entropy",
        "clip",
        "rewards",
        "lengths",
        "verification",
        "time",
        "metrics",
        "completions",
    ]
    assert page.missing == {}
    assert "pass@1 on test rose from 0.263 [0." in page.sections["verdict"]
    assert "a difference of +0.312 [+0.200, +0.425], p < 0.001." in page.sections["verdict"]
    assert "differences prompt by prompt" in page.sections["verdict"]
    assert "None of the known failure patterns was found." in page.sections["alarms"]
    assert "builtin://starter" in page.sections["setup"]
    assert "torch 2.13.0" in page.sections["setup"]
    assert "The verifier, which decides whether a completion is right, is exact." in page.sections["rewards"]
    assert "All 2 recorded completions." in page.sections["completions"]
    assert completions_of(html) == ["four", "five"]


def test_reach_beside_that_of_the_policy_before_training(whole: tuple[str, Parsed]) -> None:
    text = whole[1].sections["beyond"]
    assert "test: RL wins up to k = 2; above that the base model is not worse." in text
    assert "one of its 8 samples is right, so that one solved less often than in 31% of tries" in text
    assert re.search(r"prompts within reach before and after\|12", text)
    assert re.search(r"only before: lost\|2\s+only after: won\|2\s+never\|4", text)
    assert re.search(r"kept of what was within reach \(SRR\)\|0\.857 \[", text)
    assert re.search(r"never right\|6\|0\.\d+ \[", text)


def test_reach_is_of_test_sets_and_of_the_policy_before_training(tmp_path: Path) -> None:
    before = ["1000"] * 3 + ["0000"] * 3 + ["1111"] * 2
    after = ["0000"] * 3 + ["1111"] + ["0000"] * 2 + ["1111"] * 2
    ends = [[measured("test", samples), measured("dev", samples, "validation")] for samples in (before, after)]
    run = write_run(tmp_path / "whole", healthy=FEW, evaluations={"before": ends[0], "after": ends[1]})
    text = built(run)[1].sections["beyond"]
    assert re.search(r"before and after\|2\s+only before: lost\|3\s+only after: won\|1\s+never\|2", text)
    assert re.search(r"never right\|3\|0\.000 \[.*\]\|0\.333 \[.*\]\|\+0\.333", text)
    assert "dev" not in text
    late = write_run(tmp_path / "late", healthy=FEW, evaluations={"step-000010": ends[0], "after": ends[1]})
    assert "beyond" not in built(late)[1].sections


def test_runs_that_kept_no_outcomes_say_so(tmp_path: Path) -> None:
    _, page = built(write_run(tmp_path, healthy=FEW, evaluations=EVALUATIONS))
    assert page.missing["beyond"].startswith("No test set has outcomes by prompt at both ends")
    assert "a difference of +0.100 [+0.050, +0.150]." in page.sections["verdict"]
    assert "as if the prompts had been others each time" in page.sections["verdict"]


def test_the_page_is_one_file_that_asks_for_nothing(whole: tuple[str, Parsed]) -> None:
    html, page = whole
    assert "default-src 'none'" in html
    addresses = [found.get(name) or "" for _, found in page.tags for name in ("src", "href", "xlink:href")]
    assert all(each == "" or each.startswith("#") for each in addresses)
    assert not re.search(r"@import|url\((?!#)", html)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    write_run(tmp_path, healthy=FEW, evaluations=EVALUATIONS)
    assert built(tmp_path)[0] == built(tmp_path)[0]


def test_what_everyone_can_read(whole: tuple[str, Parsed]) -> None:
    """Unique ids, links to sections that exist, names of charts and fields, a table for every chart."""
    _, page = whole
    assert len(set(page.ids)) == len(page.ids)
    links = [found["href"] or "" for tag, found in page.tags if tag == "a"]
    assert {link[1:] for link in links} <= set(page.ids)
    charts = [found for tag, found in page.tags if tag == "svg"]
    assert len(charts) == sum(tag == "details" for tag, _ in page.tags) > 15
    assert all(found["role"] == "img" and found["aria-label"] for found in charts)
    fields = [tag for tag, _ in page.tags if tag in ("input", "select")]
    assert len(fields) == sum(tag == "label" for tag, _ in page.tags)


def test_charts_take_their_colours_from_the_page(whole: tuple[str, Parsed]) -> None:
    html, _ = whole
    charts = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert "#0102" not in charts
    assert {"var(--ink)", "var(--grid)", "var(--line0)", "var(--line1)"} <= set(re.findall(r"var\(--\w+\)", charts))
    assert "stroke-dasharray" in charts


@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_run_that_hardly_began(tmp_path: Path, num_steps: int) -> None:
    write_run(tmp_path, num_steps=num_steps, is_finished=False)
    _, page = built(tmp_path)
    assert page.missing["completions"].startswith("The run recorded no completions")
    assert page.missing["passk"] == "The run has no evaluations."
    assert ("learning" in page.missing) == (num_steps == 0)


def test_an_empty_folder_of_a_run_that_died_at_once(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("{}")
    _, page = built(tmp_path)
    assert set(page.missing) == {
        "verdict",
        "learning",
        "passk",
        "entropy",
        "clip",
        "rewards",
        "lengths",
        "verification",
        "time",
        "metrics",
        "completions",
    }
    assert page.missing["entropy"] == "The run logged no entropy/mean_token."


def test_metrics_without_a_single_number_leave_the_rest_standing(tmp_path: Path) -> None:
    write_run(tmp_path, healthy=FEW, metrics={"entropy/mean_token": lambda share: None, "grad_norm": lambda share: 0.1})
    _, page = built(tmp_path)
    assert page.missing["entropy"] == "The run logged no entropy/mean_token."
    assert not {"learning", "clip", "metrics"} & set(page.missing)


def test_guidance_and_extrapolation_stand_there_when_used(tmp_path: Path) -> None:
    recipe = {**RECIPE, "guidance": {"rule": "nurl"}, "extrapolation": {"mode": "periodic"}}
    times = {name: HEALTHY[name] for name in ("time/rollout_s", "time/verify_s", "step_time")}
    metrics = times | {
        "guidance/needed_frac": lambda share: 0.5,
        "dynamic/without_signal_frac": lambda share: share,
        "dynamic/extra_rollouts": lambda share: 8.0,
        "dynamic/extra_tokens": lambda share: 80.0,
        "guidance/extra_tokens": lambda share: 10.0,
        "extrapolation/jump": lambda share: 1.0 if share in (0.0, 1.0) else ...,
        "extrapolation/undone": lambda share: share if share in (0.0, 1.0) else ...,
        "time/extrapolate_s": lambda share: 30.0 if share in (0.0, 1.0) else ...,
        "time/evaluate_s": lambda share: 20.0 if share == 1.0 else ...,
    }
    _, page = built(write_run(tmp_path / "used", healthy=FEW, recipe=recipe, metrics=metrics))
    assert "The rule is nurl." in page.sections["guidance"]
    assert "2 jumps, of which 1 were undone." in page.sections["extrapolation"]
    rows = re.findall(r"(rollout|jumps|evaluations|verify|loss and update)\|([\d.]+)\|[\d.]+%", page.sections["time"])
    assert dict(rows) == {"rollout": "120", "jumps": "60", "evaluations": "20", "verify": "20", "loss and update": "60"}
    assert "of completions with help" in page.sections["time"]
    assert "of prompts drawn in place of others|3200" in page.sections["time"]
    assert "Prompts that teach nothing" in page.sections["dynamic"]
    assert "dynamic" not in built(write_run(tmp_path / "without", healthy=FEW))[1].sections
    _, unused = built(write_run(tmp_path / "unused", healthy=FEW, recipe=recipe))
    assert unused.missing["guidance"] == "The recipe has guidance, but no step logged any."
    assert unused.missing["extrapolation"] == "The recipe has extrapolation, but no jump was logged."


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """In completions, prompts, hints, names of rewards, metrics and sets, recipe, and facts."""
    recipe = {**RECIPE, "model": {"path": HOSTILE}, "rewards": {"functions": [{"use": "exact", "name": HOSTILE}]}}
    metrics = {f"reward/{HOSTILE.replace('/', '|')}/mean": lambda share: share, f"loss/{HOSTILE}": lambda share: share}
    before, after = ([evaluated(HOSTILE, pass_at_1=(x, x, x))] for x in (0.1, 0.9))
    evaluations = {"before": before, "after": after}
    write_run(tmp_path, recipe=recipe, healthy=FEW, metrics=metrics, evaluations=evaluations)
    (tmp_path / "run.json").write_text(json.dumps({"command": ["rlvr", HOSTILE], "versions": {HOSTILE: HOSTILE}}))
    row = completion(HOSTILE, prompt=HOSTILE, hint=HOSTILE, **{f"reward/{HOSTILE}": 1.0})
    write_completions(tmp_path, 1, [row])
    html, page = built(tmp_path)
    assert [found.get("class") for tag, found in page.tags if tag == "script"] == ["packed", None]
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "link", "base")]
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert "\x1b" not in html
    assert "\u202e" not in html
    (text,) = completions_of(html)
    assert text.startswith("</script><script>alert(1)")
    assert "\\x1b[2J" in text
    assert "{{ 7 * 7 }}" in page.sections["setup"]
    assert "49" not in page.sections["setup"]


# ---- several runs ---------------------------------------------------------------------------------------------------


def test_several_runs_beside_one_another(tmp_path: Path) -> None:
    slow = {
        **RECIPE,
        "trainer": {**RECIPE["trainer"], "learning_rate": 1e-6, "beta2": 0.5},
        "guidance": {"rule": "sage"},
    }
    first = write_run(tmp_path / "first", healthy=FEW, evaluations=EVALUATIONS)
    second = write_run(
        tmp_path / "second", num_steps=30, recipe=slow, healthy=FEW, metrics={"groups/solved_frac": lambda share: 0.9}
    )
    write_completions(first, 1, [completion("of the first")])
    write_completions(second, 1, [completion("of the second")])
    html, page = built(first, second)
    assert [each for each in page.sections if each] == [
        "verdict", "results", "learning", "alarms", "differences", "completions",
    ]  # fmt: skip
    assert re.search(r"first\|0\.400 \[0\.360, 0\.440\]\|0\.500", page.sections["results"])
    assert re.search(r"second\|-\|-\|-\|not evaluated at both ends", page.sections["results"])
    rows = re.findall(r"^([\w.]+)\|(.+)\|(.+)$", page.sections["differences"], flags=re.MULTILINE)
    assert rows == [
        ("guidance", "null", "(set, see below)"),
        ("trainer.learning_rate", "1e-05", "1e-06"),
        ("guidance.rule", "(not set)", "sage"),
        ("trainer.beta2", "(not set)", "0.5"),
    ]
    assert "second|-|-|-|not evaluated at both ends|-" in page.sections["results"]
    assert len(set(page.ids)) == len(page.ids)
    assert "nearly all groups solved" in page.sections["alarms"]
    assert completions_of(html) == ["of the first", "of the second"]


def test_runs_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    """The last evaluations of the runs, each with that of the first run."""
    ends = {"first": BEFORE, "second": AFTER, "third": AFTER[:-1]}
    folders = [
        write_run(
            tmp_path / name,
            healthy=FEW,
            evaluations={
                "before": [measured("other", BEFORE), measured("test", BEFORE)],
                "after": [measured("other", BEFORE), measured("test", after)],
            },
        )
        for name, after in ends.items()
    ]
    text = built(*folders)[1].sections["results"]
    assert "after, minus first" in text
    assert re.search(r"first\|[^|]*\|[^|]*\|\+0\.000 \[\+0\.000, \+0\.000\]\|not told apart\|\s", text)
    assert re.search(r"second\|[^|]*\|[^|]*\|\+0\.312 \[.*\]\|better\|\+0\.312 \[\+0\.\d+, .*\], p < 0\.001", text)
    assert re.search(r"third\|[^|]*\|[^|]*\|\+0\.\d+ \[.*\]\|better\|other prompts, or none kept", text)


def test_equal_recipes_are_said_to_be(tmp_path: Path) -> None:
    _, page = built(write_run(tmp_path / "a", healthy=FEW), write_run(tmp_path / "b", healthy=FEW))
    assert "The recipes are the same." in page.sections["differences"]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_command(tmp_path: Path) -> None:
    write_run(tmp_path / "run", healthy=FEW)
    result = CliRunner().invoke(app, ["report", str(tmp_path / "run")])
    assert (result.exit_code, result.stdout) == (0, f"report  {tmp_path}/run/report.html\n")
    other = tmp_path / "elsewhere" / "page.html"
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run"), "--output", str(other)]).exit_code == 0
    assert other.read_bytes() == (tmp_path / "run" / "report.html").read_bytes()
    assert [path.name for path in other.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "holds no run"), (["--output", "."], "--output: . is a folder")],
)
def test_command_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_watching_builds_when_the_run_grows_and_ends_with_it(tmp_path: Path) -> None:
    """Steps 1-3 one after another, then the record that ends the run; every build but the last reloads itself."""
    output = tmp_path / "report.html"
    write_run(tmp_path, num_steps=1, healthy=FEW, is_finished=False)
    told: list[int] = []
    waits: list[float] = []

    def grow(seconds: float) -> None:
        assert "data-live" in output.read_text(encoding="utf-8")[:400]
        waits.append(seconds)
        if len(waits) % 2 == 0:  # every other time nothing has changed
            write_run(tmp_path, num_steps=told[-1] + 1, healthy=FEW, is_finished=told[-1] == 2)

    watching.watch([tmp_path], output, lambda runs, took: told.append(runs[0].last_step), grow)
    assert told == [1, 2, 3]
    assert len(waits) == 4
    assert "data-live" not in output.read_text(encoding="utf-8")[:400]
