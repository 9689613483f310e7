"""The page in a real, headless Chromium: nothing hostile runs, the completions can be searched, all is readable."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlvr.reporting.report.building import build_report
from tests.browser import Browser, chromium
from tests.report_runs import FEW, HEALTHY, completion, evaluated, write_completions, write_run

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium, such as Debian's package chromium")

SHOWN = "[...document.querySelectorAll('#shown .completion')].map((each) => each.innerText)"
COUNT = "document.querySelector('#count').textContent"
HOSTILE = (
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "<svg onload=\"document.title = 'owned'\"><iframe src=\"javascript:parent.document.title = 'owned'\">",
    "\x1b]0;owned\x07\u202e",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        opened.look(1280)
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of completions: right, wrong, without a verdict, truncated, with a hint, with values, hostile."""
    folder = tmp_path_factory.mktemp("run")
    metrics = {name: HEALTHY[name] for name in ("entropy/mean_token", "completions/mean_length")}
    before, after = ([evaluated("test", pass_at_1=(x, x - 0.1, x + 0.1))] for x in (0.2, 0.8))
    write_run(folder, healthy=FEW, metrics=metrics, evaluations={"before": before, "after": after})
    tokens = {"token_text": ["so", " 4"], "token_logprob": [-0.01, -5.0], "token_entropy": [2.5, 0.0]}
    none = dict.fromkeys(tokens)
    for step in range(1, 6):
        rows = [
            completion(f"right {step}", 1.0, reward=1.5, **none),
            completion(f"Wrong {step}", 0.0, truncated=True, **none),
            completion(f"unknown {step}", None, **none),
            completion("so 4", 1.0, hint=f"add them {step}", **tokens),
        ]
        write_completions(folder, step, rows)
    write_completions(folder, 6, [completion(text, prompt=text, hint=text) for text in HOSTILE])
    build_report([folder], folder / "report.html")
    return folder


def opened(browser: Browser, folder: Path, fragment: str = "") -> None:
    browser.open(folder / "report.html", fragment)
    browser.wait_for("document.documentElement.dataset.unpacked")


@pytest.mark.parametrize(
    ("fragment", "count", "first"),
    [
        ("", 24, "step 1, completion 1"),
        ("&q=wRONG", 5, "step 1, completion 2"),
        ("&q=add%20them%203", 1, "step 3, completion 4"),
        ("&outcome=none", 5, "unknown 1"),
        ("&outcome=wrong&from=2&to=3", 2, "Wrong 2"),
        ("&end=truncated", 5, "truncated"),
        ("&hint=with&to=5", 5, "hint shown to the policy"),
        ("&order=late", 24, "step 6, completion 1"),
        ("&order=reward", 24, "reward 1.5"),
        ("&heat=entropy", 5, "so 4"),
        ("&q=nothing%20like%20this", 0, None),
    ],
)
def test_filters(browser: Browser, folder: Path, fragment: str, count: int, first: str | None) -> None:
    opened(browser, folder, "#completions" + fragment)
    assert browser.value(COUNT) == f"{count} of 24 completions"
    shown = browser.value(SHOWN)
    assert len(shown) == min(count, 20)
    assert first is None or first in shown[0]


def test_nothing_hostile_runs(browser: Browser, folder: Path) -> None:
    opened(browser, folder, "#completions&from=6")
    assert browser.value("document.title") == folder.name
    shown = browser.value(SHOWN)
    assert [text.count(hostile) for text, hostile in zip(shown[:3], HOSTILE[:3], strict=True)] == [3, 3, 3]
    assert shown[3].count("\\x1b]0;owned\\x07\\u202e") == 3
    assert browser.value("document.querySelectorAll('main img, main iframe, main script').length") == 0
    assert browser.complaints == []
    assert {request.partition("#")[0] for request in browser.requests} <= {
        "about:blank",
        (folder / "report.html").as_uri(),
    }


def test_policy_stops_scripts_even_if_one_got_in(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """The second line of defence: a page into which markup was put by hand."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").write_text(text.replace("<main", HOSTILE[0][9:] + HOSTILE[1] + "<main", 1))
    opened(browser, tmp_path)
    assert browser.value("document.title") == folder.name
    assert len(browser.complaints) >= 2
    browser.events.clear()


def test_keyboard_alone(browser: Browser, folder: Path) -> None:
    opened(browser, folder)
    browser.press("Tab", 9)
    assert browser.value("document.activeElement.className") == "skip"
    assert browser.value("document.activeElement.getBoundingClientRect().left") >= 0  # seen once it has the focus
    browser.value("document.querySelector('[name=q]').focus()")
    browser.type("wrong 4")
    browser.wait_for(f"{COUNT} === '1 of 24 completions'")
    assert browser.value("location.hash") == "#completions&q=wrong%204"
    browser.value("document.querySelector('[type=reset]').focus()")
    browser.press("Enter", 13)
    browser.wait_for(f"{COUNT} === '24 of 24 completions'")
    browser.value("document.querySelector('#next').focus()")
    browser.press("Enter", 13)
    assert browser.value("document.querySelector('#page').textContent") == "page 2 of 2"
    assert len(browser.value(SHOWN)) == 4
    assert browser.value("document.querySelector('#next').disabled")


def test_token_heat_map(browser: Browser, folder: Path) -> None:
    tokens = "[...document.querySelector('#shown .completion').querySelectorAll('.token')]"
    opened(browser, folder, "#completions&heat=logprob")
    assert browser.value(f"{tokens}.map((each) => [each.textContent, each.className, each.title])") == [
        ["so", "token heat0", "log-probability -0.01, entropy 2.5"],
        [" 4", "token heat5", "log-probability -5, entropy 0"],
    ]
    opened(browser, folder, "#completions&heat=entropy")
    assert browser.value(f"{tokens}.map((each) => each.className)") == ["token heat5", "token heat0"]


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_stands_out_from_its_ground(browser: Browser, folder: Path, is_dark: bool) -> None:
    """Contrast of 4.5 for text and 3 for lines, by the rule of WCAG 2."""
    browser.look(1280, is_dark=is_dark)
    opened(browser, folder)
    style = "getComputedStyle(document.documentElement)"
    names = ["paper", "panel", "ink", "faint", "link", "problem", "watch", *(f"line{index}" for index in range(8))]
    found = {name: browser.value(f"{style}.getPropertyValue('--{name}').trim()") for name in names}
    light = {name: luminance(value) for name, value in found.items()}
    for name in ("ink", "faint", "link", "problem", "watch"):
        assert all(contrast(light[name], light[ground]) >= 4.5 for ground in ("paper", "panel")), name
    assert all(contrast(light[f"line{index}"], light["paper"]) >= 3 for index in range(8))
    assert browser.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 23, 27)" if is_dark else "rgb(255, 255, 255)"
    )
    browser.look(1280)


def luminance(colour: str) -> float:
    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4

    whole = colour if len(colour) == 7 else "#" + "".join(each * 2 for each in colour[1:])
    red, green, blue = (linear(int(whole[first : first + 2], 16) / 255) for first in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: float, second: float) -> float:
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, folder: Path, width: int) -> None:
    browser.look(width)
    opened(browser, folder)
    assert browser.value("document.documentElement.scrollWidth") <= width
    smallest = browser.value(
        "Math.min(...[...document.querySelectorAll('svg text')].map((each) => each.getBoundingClientRect().height))"
    )
    assert smallest >= 9  # pixels: the labels of charts do not shrink with the window
    browser.look(1280)


def test_print(browser: Browser, folder: Path, tmp_path: Path) -> None:
    opened(browser, folder)
    browser.look(1280, is_dark=True, is_print=True)
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.value("getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()") == "#fff"
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    browser.look(1280)


def test_a_page_of_a_run_that_goes_on_reloads_itself(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """With the filter and what was opened kept, and not while something is being typed."""
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "outcome/pass_rate": 0.5}\n')
    build_report([tmp_path / "run"], tmp_path / "run" / "report.html", is_live=True)
    opened(browser, tmp_path / "run", "#completions&q=wrong")
    browser.value("document.querySelector('details').open = true; window.isOld = true")
    is_new = "!window.isOld && document.documentElement?.dataset.unpacked"
    is_kept = f"{COUNT} === '5 of 24 completions' && document.querySelectorAll('details[open]').length === 1"
    browser.wait_for(f"{is_new} && {is_kept}", seconds=30)  # at once, as it may reload again
