"""The report of run directories: what it says, that it is one safe file, and that parts may be missing."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.decisions import charts, report, scorecard, sections
from pipeline.decisions.assure import Rule
from pipeline.errors import StoreError
from pipeline.options import At, Columns, Decide, Outcome, Source
from tests.decisions.rundir import EVIL, make_run

RETAIL = Config(
    name="grocer",
    source=Source(path="log", columns=Columns(subscriber="s", ts="t", event="e")),
    at=At(every="28d"),
    outcomes={
        "redeem": Outcome(events="redeem", within="28d"),
        "spend": Outcome(sum="value", of="basket", within="28d"),
    },
    decide=Decide(hold_when=None, reward={"redeem": 1.0}),
)  # fmt: skip


class Page(html.parser.HTMLParser):
    """Tags with their attributes, the visible text, and whether every element is closed."""

    EMPTY = {"meta", "link", "br"}  # nothing to close

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def email(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("email") / "demo"
    make_run(folder, Config(decide={"reward": {"click": 1.0}}), ["acme", "ze<b>nith"], rows=1500)
    return folder


def test_the_answer_comes_first(email: Path) -> None:
    path = report.write_report(email)
    assert path == email / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    decided = json.loads((email / "metrics.json").read_text())["decisions"].values()
    held, eligible = (sum(d[k] for d in decided) for k in ("held", "eligible"))
    assert f"Hold {held:,} of {eligible:,} subscribers from the next message." in page.text
    avoided = sum(d["avoided"]["expected"] for d in decided)
    whole = sum(d["avoided"]["of"] for d in decided)
    assert f"expected to avoid {avoided:.{0 if avoided >= 9.95 else 1}f} of" in page.text
    assert f"unsubscribes ({100 * avoided / whole:.1f}%), and to give up" in page.text
    tests = [d["backtest"] for d in decided]
    count, of = (sum(t["caught"][k] for t in tests) for k in ("count", "of"))
    assert f"({count:.0f} of {of:.0f}; 90% interval" in page.text
    assert "2,013,440 rows in = 1,998,201 kept + 10,039 duplicates + 5,200 rejected." in page.text
    for word in ("logistic regression", "ideal observer", "the true probability", "0.50% of sends", "scanner click"):
        assert word in page.text
    assert "of the ideal" in page.text
    shares = ("91.2%", "82.4%", "29.4%", "176%")  # 3.1, 2.8, 1.0, 6.0 over 3.4
    assert all(page.text.count(share) >= 3 for share in shares)
    assert page.text.index("Hold ") < page.text.index("Campaigns") < page.text.index("rows in =")
    assert page.text.count("expected loss") >= 12  # the riskiest of each client, in words
    assert not list(email.glob(".report*"))


def test_one_file_that_asks_for_nothing_and_runs_nothing(email: Path) -> None:
    text = report.render(report.ReportInput.from_run_dir(email))
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "embed", "base", "form", "b0"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "action", "srcset", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:,"))
        if tag == "meta" and attributes.get("http-equiv"):
            assert "default-src 'none'" in str(attributes["content"])
    assert "url(" not in text
    assert "@import" not in text


def test_text_of_the_log_is_escaped(email: Path) -> None:
    text = report.render(report.ReportInput.from_run_dir(email))
    assert EVIL not in text
    assert "<script" not in text
    assert "ze<b>nith" not in text
    page = Page(text)
    assert EVIL in page.text  # shown as it is called
    assert "ze<b>nith" in page.text


def test_every_chart_is_described(email: Path) -> None:
    page = Page(report.render(report.ReportInput.from_run_dir(email)))
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("role") == "img"]
    assert len(charts) >= 8
    assert all(a.get("aria-label") for a in charts)
    assert page.text.count("the numbers") == len([a for a in charts if a["class"] == "chart"])
    (spark,) = (a for a in charts if a["class"] == "spark")  # its numbers stand beside it
    assert spark["aria-label"] == "machine open: 2026-07-30 to 2026-07-31, 5.0% on 2026-07-31"


def test_a_log_that_is_not_email(tmp_path: Path) -> None:
    make_run(tmp_path / "grocer", RETAIL, ["grocer"], rows=1000, truth=False)
    page = Page(report.write_report(tmp_path / "grocer").read_text(encoding="utf-8"))
    assert "subscribers ranked." in page.text  # a snapshot a week: there is no exposure to name
    assert "of the expected redeems." in page.text
    for word in ("unsubscribe", "click rate", "deliver", "Hold ", "simulated log", "true probability"):
        assert word not in page.text.partition("the configuration")[0]
    assert "baskets" in page.text


def test_rebuilt_from_the_tables_alone(email: Path, tmp_path: Path) -> None:
    full = json.loads((email / "metrics.json").read_text())
    bare = tmp_path / "demo"
    bare.mkdir()
    for name in ("config.yaml", "decisions", "rollups"):
        (bare / name).symlink_to(email / name)
    (bare / "metrics.json").write_text("{}")
    given = report.ReportInput.from_run_dir(bare)
    for client, decided in full["decisions"].items():
        found = given.metrics["decisions"][client]
        for key in ("held", "eligible", "reasons", "waves"):
            assert found[key] == decided[key]
        assert found["avoided"] == pytest.approx(decided["avoided"])
    page = Page(report.render(given))
    assert "Hold " in page.text


@pytest.mark.parametrize("part", ["events", "stages", "models", "decisions", "rules", "dirt", "run"])
def test_parts_may_be_missing(email: Path, part: str) -> None:
    given = report.ReportInput.from_run_dir(email)
    rest = {k: v for k, v in given.metrics.items() if k != part}
    page = Page(report.render(report.ReportInput(given.config, rest)))
    assert ("No list has been made yet." in page.text) == (part == "decisions")


def test_nothing_yet(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to report"):
        report.write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        report.write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    assert "No list has been made yet." in Page(report.write_report(tmp_path).read_text(encoding="utf-8")).text


def test_rows_that_do_not_add_up_are_shown(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"events": {"in": 10, "kept": 5, "duplicates": 1, "rejected": 1}}')
    text = Page(report.write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "These add up to 7, not to the rows in." in text


def test_nobody_can_be_held_without_a_model(email: Path) -> None:
    given = report.ReportInput.from_run_dir(email)
    for decided in given.metrics["decisions"].values():
        decided |= {
            "avoided": None,
            "given_up": {},
            "net": None,
            "held": 0,
            "missing": ["unsubscribe"],
            "backtest": None,
        }
    text = Page(report.render(given)).text
    assert "Nobody is held: there are too few unsubscribes to learn from." in text
    assert "No model for unsubscribe" in text


def test_words_follow_the_exposure() -> None:
    rule = Rule(None, 1.0, {"redeem": 1.0})
    decided = {"grocer": {"rows": 10, "sent": 10, "eligible": 10, "waves": [5, 5], "first_wave": {"redeem": 0.7}}}
    for exposure, words in (
        ("send", " for the next message"),
        ("campaign_received", " for the next campaign received"),
    ):
        found = sections.answer(decided, rule, exposure)
        assert found is not None
        assert found["headline"] == f"10 subscribers ranked{words}."
    assert charts.plural("campaign_received") == "campaign received"


def test_the_cost_curve_reaches_its_end() -> None:
    """A share of whole rows may lie a hair beyond the round number at which the chart ends."""
    curve = [
        {"held_share": s, "cost": s, "caught_share": s, "lost_share": {"click": s / 9}} for s in (0, 0.2, 0.3000236)
    ]
    test = {"hold_when": "unsubscribe", "cost": 5, "held_share": 0.2, "caught": {"share": 0.2}, "lost": {"click": {}}}
    drawn = str(scorecard._cost_curve({**test, "curve": curve}))
    lines = re.findall(r'class="line c[14]" points="([^"]+)"', drawn)
    assert len(lines) == 2
    assert all(line.split()[-1].startswith("446.0,") for line in lines)  # the right edge


OLD, NEW = "20260801T000000Z-0123456789abcdef", "20260802T000000Z-fedcba9876543210"


def judged(email: Path, accepted: bool, serving: str | None) -> Page:
    """The report where acme's model trained last is NEW and another, or none, is in use."""
    given = report.ReportInput.from_run_dir(email)
    metrics = given.metrics | {"models": {"acme": given.metrics["models"]["acme"]}, "serving": {"acme": serving}}
    metrics["gate"] = {"acme": {"version": NEW, "accepted": accepted, "reasons": [] if accepted else ["click: bad"]}}
    decided = metrics["decisions"]["acme"] | {"model_version": serving}
    metrics["decisions"] = {"acme": decided if serving else {**decided, "backtest": None}}
    return Page(report.render(report.ReportInput(given.config, metrics)))


def test_numbers_of_a_refused_model_are_not_taken_for_those_of_the_one_in_use(email: Path) -> None:
    text = judged(email, False, OLD).text
    assert f"The new version {NEW} is refused. {OLD} keeps serving." in text
    assert "what holding more would do is of the one in use" in text
    holding = text[text.index("What holding more would do") :].partition("the numbers")[0]
    assert f"Of {OLD}, which is in use." in holding
    assert NEW not in holding
    calibration = text[text.index("Calibration: unsubscribe") :].partition("the numbers")[0]
    assert f"Of {NEW}, refused." in calibration
    assert "the refused version" in calibration
    assert OLD not in calibration
    for outcome in ("unsubscribe", "click", "open"):
        assert re.search(rf" {outcome} {NEW}, refused ", text)  # the caption of its table
    assert "this model" not in text
    # A table of what each scorer has, for each of three outcomes and the budgets; and three calibrations' legends.
    assert text.count(" the refused version ") == 7


def test_a_refused_model_that_nobody_stands_in_for(email: Path) -> None:
    text = judged(email, False, None).text
    assert f"The new version {NEW} is refused. No other is in its place." in text
    assert "What holding more would do" not in text
    assert f"Of {NEW}, refused." in text


def test_a_version_put_in_use_by_hand_is_told_from_the_one_measured(email: Path) -> None:
    text = judged(email, True, OLD).text
    assert "refused" not in text.partition("the configuration")[0]
    assert f"{OLD} is in use, of which what holding more would do is drawn; tables and calibration are of {NEW}" in text
    assert f"Of {OLD}, which is in use." in text
    assert f"Of {NEW}, not in use." in text
    assert "in use" not in judged(email, True, NEW).text


def test_a_refused_pooled_model_is_named(email: Path) -> None:
    given = report.ReportInput.from_run_dir(email)
    verdict = {"accepted": False, "reasons": ["click: bad"]}
    metrics = given.metrics | {"pooled": {"version": NEW, "serving": None, "gate": verdict}}
    decided = metrics["decisions"]
    metrics["decisions"] = {n: {**d, "model_version": "", "backtest": None} for n, d in decided.items()}
    text = Page(report.render(report.ReportInput(given.config, metrics))).text
    assert f"The new pooled model {NEW} is refused. No other is in its place: clients of too few positives" in text
    assert f"The new version @pooled/{NEW} is refused. No other is in its place." in text
    metrics |= {"pooled": {"version": NEW, "serving": f"@pooled/{OLD}", "gate": verdict}, "decisions": decided}
    text = Page(report.render(report.ReportInput(given.config, metrics))).text
    assert f"The new pooled model {NEW} is refused. @pooled/{OLD} keeps serving." in text
    assert text.count("is refused") == 1


def test_those_without_a_model_are_not_called_too_new() -> None:
    rule = Rule("unsubscribe", 20.0, {"click": 1.0}, minimum_events=3)
    none = {"rows": 9, "eligible": 0, "unscored": 9, "reasons": {"no_model": 7, "too_new": 2}, "model_version": ""}
    found = sections.answer({"acme": none}, rule)
    assert found is not None
    assert found["headline"] == "Nobody is scored: no model is in use."
    too_new, left = "2 are too new to score and left to your usual practice", "are left to your usual practice"
    assert found["aside"] == f"{too_new} and 7 have no model and {left}."
    assert not found["rows"][0]["modelled"]
    # Of somebody who is sent to, no_model says only that the rule had nothing to hold by.
    some = {"rows": 9, "eligible": 7, "sent": 7, "unscored": 2, "reasons": {"no_model": 7, "too_new": 2}}
    found = sections.answer({"acme": {**some, "model_version": "1"}}, rule)
    assert found is not None
    assert found["headline"] == "Nobody is held: there are too few unsubscribes to learn from."
    assert found["aside"] == "2 are too new to score and left to your usual practice."
    assert found["rows"][0]["modelled"]


def test_of_many_clients_only_the_largest_have_charts(email: Path) -> None:
    given = report.ReportInput.from_run_dir(email)
    heads, decided = given.metrics["models"]["acme"], given.metrics["decisions"]["acme"]
    names = [f"client {i:02d}" for i in range(60)]
    metrics = given.metrics | {
        "models": dict.fromkeys(names, heads),
        "decisions": {n: {**decided, "rows": 1000 + i} for i, n in enumerate(names)},
        "gate": {names[3]: {"version": NEW, "accepted": False, "reasons": ["click: bad"]}},
        "serving": dict.fromkeys(names, OLD),
    }
    some = report.ReportInput(given.config, metrics, dict.fromkeys(names, given.rollups["acme"]))
    text = report.render(some)
    page = Page(text)
    titles = [a["aria-label"] for tag, a in page.tags if tag == "svg" and a.get("class") == "chart"]
    for title in ("Calibration: unsubscribe", "What holding more would do", "Events by day"):
        assert titles.count(title) == 12
    for name in names:
        before, _, after = page.text.partition("Model quality Measured on the hold-out")
        assert name in before  # in the table of who
        assert name in after  # and with the models
    smaller = page.text.rpartition("Smaller clients")[2]
    assert smaller.index(names[3]) < min(smaller.index(n) for n in names[:48] if n != names[3])
    assert "refused : click: bad" in smaller
    assert names[-1] not in smaller  # the largest is shown by itself
    assert len(text) < 900_000
