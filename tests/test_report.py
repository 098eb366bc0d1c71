"""The report of realistic, unfinished, empty and hostile runs."""

import html.parser
import json
import math
import re

import numpy as np
import pytest

from rlvr import errors, figures, plots, report, statistics, types, writers

WARM, STEPS = 30, 90
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\ud800 & \"'"


def fake_metrics(step, rng):
    """One step of a run that learns: 30 steps of warm start, then RL."""
    if step < WARM:
        return {
            "phase": "warm_start",
            "wall_s": 0.4 * step,
            "loss/supervised": 2.5 * math.exp(-step / 8) + 0.4 + 0.05 * rng.normal(),
            "optimizer/grad_norm": 3 * math.exp(-step / 15) + 0.1 * rng.random(),
            "optimizer/lr": 1e-3 * min(1, (step + 1) / 10),
            "optimizer/skipped": 0,
            "time/update": 20.0 if step == 0 else 0.3 + 0.05 * rng.random(),
            "time/other": 0.02,
        }
    done = (step - WARM) / (STEPS - WARM)
    accuracy = 0.45 + 0.5 * done + 0.04 * rng.normal()
    correct = int(np.clip(256 * accuracy, 0, 256))
    wrong = int((256 - correct) * 0.8)
    metrics = {
        "phase": "rl",
        "wall_s": 12 + 3.2 * (step - WARM),
        "reward/mean": accuracy,
        "reward/std": math.sqrt(max(accuracy * (1 - accuracy), 0.01)),
        "accuracy/strict": accuracy,
        "accuracy/lenient": min(1.0, accuracy + 0.05 * (1 - done)),
        "rollout/tokens_mean": 4.2 + done,
        "rollout/tokens_per_s": 800 + 60 * rng.normal(),
        "rollout/truncated": 0.05 * (1 - done),
        "rollout/entropy": 0.9 - 0.6 * done,
        "rollout/surprisal": 0.8 - 0.6 * done,
        "clip/high": 0.01 * rng.random(),
        "clip/low": 0.004 * rng.random(),
        "gap/mean": 2e-7 * (1 + rng.random()),
        "gap/max": 3e-6 * (1 + rng.random()),
        "verdict/correct": correct,
        "verdict/wrong": wrong,
        "verdict/unparsed": 256 - correct - wrong,
        "verdict/timeout": int(step % 17 == 0),
        "verdict/error": 0,
        "verdict/refused": 0,
        "groups/all_correct": 0.1 + 0.6 * done,
        "groups/all_wrong": 0.2 * (1 - done),
        "loss/policy": 0.01 * rng.normal(),
        "optimizer/grad_norm": math.nan if step == 50 else 0.5 + 0.1 * rng.random(),
        "optimizer/lr": 3e-4,
        "optimizer/skipped": int(step == 50),
        "moe/balance_loss": 1.02 + 0.01 * rng.random(),
        "moe/z_loss": 0.3 - 0.1 * done,
        "moe/load_max": 1.4 + 0.1 * rng.random(),
        "moe/router_entropy": 1.8 - 0.1 * done,
        "time/rollout": (9.0 if step == WARM else 1.6) + 0.1 * rng.random(),
        "time/verify_wait": 0.05 * rng.random(),
        "time/update": 1.1 + 0.1 * rng.random(),
        "time/evaluate": 0.0,
        "time/checkpoint": 0.3 if step % 20 == 0 else 0.0,
        "time/other": 0.05,
    }
    if step % 5 == 0:
        metrics["kl/start"] = 0.02 * done + 0.001 * rng.random()
    if (step - WARM) % 10 == 0 or step == STEPS - 1:
        metrics["time/evaluate"] = 1.4
        for task, offset in (("addition", 0.02), ("multiplication", -0.12)):
            metrics[f"eval/{task}/accuracy"] = min(0.98, 0.45 + 0.5 * done + offset)
            metrics[f"eval/{task}/accuracy_lenient"] = min(1.0, 0.5 + 0.47 * done + offset)
            metrics[f"eval/{task}/mean_tokens"] = 4.0 + done
    return metrics


def fake_samples(step, rng):
    for sample in range(8):
        left, right = (int(value) for value in rng.integers(10, 99, size=2))
        right_answer = bool(rng.random() < 0.4 + 0.5 * step / STEPS)
        said = left + right + (0 if right_answer else 10)
        yield {
            "task": "addition",
            "prompt_id": 123456 + sample // 4,
            "sample": sample % 4,
            "prompt": f"What is {left} + {right}?\nAnswer with a number.",
            "completion": f" {left}+{right}\t= \n{said}  \n" + ("so <b>that</b> is it. " * 12 if sample == 3 else ""),
            "answer": str(left + right),
            "score": float(right_answer),
            "status": "correct" if right_answer else "wrong",
            "detail": "" if right_answer else f"{said} is not {left + right}",
            "parts": {"strict": float(right_answer), "lenient": float(right_answer)},
            "tokens": 9,
            "stop_reason": "stop",
            "advantage": 0.7 if right_answer else -1.2,
        }


def fake_result(steps):
    def evaluation(accuracy, tokens):
        return {
            "n": 500,
            "accuracy": accuracy,
            "accuracy_lenient": min(1.0, accuracy + 0.03),
            "interval": list(statistics.wilson_interval(500 * accuracy, 500)),
            "mean_tokens": tokens,
        }

    return {
        "config_hash": "5f2c9a",
        "steps": steps,
        "params_sha256": "ab" * 32,
        "rollout_sha256": "cd" * 32,
        "eval_start": {"addition": evaluation(0.47, 4.0), "multiplication": evaluation(0.33, 4.1)},
        "eval": {"addition": evaluation(0.97, 5.0), "multiplication": evaluation(0.83, 5.2)},
        "wall_s": 214.3,
    }


def make_workdir(path, steps=STEPS, finished=True):
    rng = np.random.default_rng(0)
    path.mkdir(exist_ok=True)
    config = {"seed": 0, "policy": {"dim": 128, "note": "<i>&"}, "rollout": {"group_size": 8}}
    (path / "config.json").write_text(json.dumps(config))
    with open(path / "log.txt", "w") as log:
        with writers.MetricsWriter(path, resume_step=0, total_steps=steps, stream=log) as writer:
            for step in range(steps):
                writer.write(step, fake_metrics(step, rng))
                if step >= WARM and step % 10 == 0:
                    writer.write_samples(step, fake_samples(step, rng))
    if finished:
        (path / "result.json").write_text(json.dumps(fake_result(steps)))
    return path


class Page(html.parser.HTMLParser):
    """What a browser would see: the tags, their attributes and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text, self.labels = [], [], "", []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "th", "dd", "dt", "p", "li"):
            self.text += " "
        self.attributes += attrs
        self.labels += [value for name, value in attrs if name == "aria-label"]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("runs") / "quickstart-0")


@pytest.fixture(scope="module")
def page(workdir):
    return Page(report.write_report(workdir))


def test_every_recorded_series_has_its_plot(page):
    assert page.labels == [
        "Supervised loss (warm start)",
        "Reward",
        "Accuracy",
        "Completion length",
        "Truncated completions",
        "Entropy of the policy",
        "KL to the reference policy (k3)",
        "Clipped tokens",
        "Rollout/train log-prob gap",
        "Verdicts",
        "Groups without signal",
        "Policy loss",
        "Gradient norm",
        "Learning rate",
        "MoE router: busiest expert",
        "MoE router: entropy",
        "MoE losses",
        "Rollout speed",
        "Time of a step",
    ]


def test_head_table_and_notices(page):
    text = " ".join(page.text.split())
    assert "quickstart-0" in text and "90 (30 of them warm start)" in text and "3m34s" in text and "5f2c9a" in text
    low, high = statistics.wilson_interval(0.97 * 500, 500)
    assert f"addition 500 0.470 0.970 0.427 to 0.514 {low:.3f} to {high:.3f} 0.500 1.000 4.0 5.0" in text
    assert "values that were not finite: optimizer/grad_norm at 1 of 90 steps" in text
    assert "updates skipped because of non-finite gradients: 1" in text
    assert '"group_size": 8' in text


def test_page_is_self_contained_and_small(workdir, page):
    path = workdir / "report.html"
    assert path.stat().st_size < 1_500_000
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name.endswith(("href", "src")):
            assert value.startswith("#")
    source = path.read_text(encoding="utf-8")
    assert "url(http" not in source and "@import" not in source
    # Every reference inside a plot has its target.
    targets = set(re.findall(r'\bid="([^"]+)"', source))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', source))
    for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', source):
        assert (pair[0] or pair[1]) in targets


def test_same_files_same_bytes(workdir, page):
    first = (workdir / "report.html").read_bytes()
    report.write_report(workdir)
    assert (workdir / "report.html").read_bytes() == first


def test_hostile_text_stays_text(tmp_path):
    workdir = make_workdir(tmp_path / "run<script>", steps=2, finished=False)
    row = dict.fromkeys(("task", "prompt", "completion", "answer", "status", "detail", "stop_reason"), HOSTILE)
    with writers.MetricsWriter(workdir, resume_step=2, total_steps=3, stream=(tmp_path / "log").open("w")) as writer:
        name = "eval/$\\frac{</text><script>alert(3)</script>--><!--/accuracy"
        writer.write(2, {"phase": "rl", name: 0.5, "verdict/<script>": 3})
        writer.write_samples(2, [row | {"score": None, "parts": {HOSTILE: 1.0}}])
    page = Page(report.write_report(workdir))
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    # Still readable, with the invisible characters made visible.
    assert r"""</pre><script>alert(1)</script><img src=x onerror=alert(2)>\u{202e}\u{d800} & "'""" in page.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"),
        ("", "(empty)"),
        (" a  b ", "·a··b·"),
        ("a \nb\n\n", "a·↵\nb↵\n↵\n"),
        ("a\tb\r", "a→\tb\\u{d}"),
        ("\u200b\u00a0\ue000", "\\u{200b}\\u{a0}\\u{e000}"),
        ("é中😀&<", "é中😀&amp;&lt;"),
    ],
)
def test_special_characters_are_visible(text, shown):
    assert re.sub(r"</?span[^>]*>", "", report.show_text(text)) == shown


def test_long_text_loses_its_middle():
    shown = report.show_text("a" * 50_000 + "END")
    assert len(shown) < 13_000 and shown.endswith("END") and "[38003 characters left out]" in shown


def test_samples_best_and_worst():
    def row(step, score, advantage, name):
        return {"step": step, "score": score, "advantage": advantage, "name": name}

    rows = [
        row(5, 0.0, -1.0, "a"),
        row(5, 1.0, 0.5, "b"),
        row(5, 1.0, 0.9, "c"),
        row(5, None, 3.0, "d"),
        row(9, 1.0, 0.0, "e"),
        row(9, 1.0, 0.0, "f"),
        row(2, 0.5, 0.0, "g"),
        row(7, 0.5, 0.0, "h"),
    ]
    chosen = report.choose_samples(rows)
    assert [shown["step"] for shown in chosen] == [2, 7, 9]
    assert [[(label, r["name"]) for label, r in shown["rollouts"]] for shown in chosen] == [
        [("only one recorded", "g")],
        [("only one recorded", "h")],
        [("best", "e"), ("worst", "f")],
    ]
    (five,) = report.choose_samples(row for row in rows if row["step"] == 5)
    assert [r["name"] for _, r in five["rollouts"]] == ["c", "d"]
    assert five["count"] == 4 and five["score"] == 2 / 3  # of the three that have one


def test_unfinished_run_shows_what_there_is(tmp_path):
    workdir = make_workdir(tmp_path / "run", steps=56, finished=False)
    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 56, "rew')
    page = Page(report.write_report(workdir))
    text = " ".join(page.text.split())
    assert "not finished" in text and "step 30 step 50" in text and "addition - 0.470 0.637 - - 0.520" in text


def test_empty_run_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    page = Page(report.write_report(tmp_path))
    for message in ("no metrics recorded", "no samples recorded", "no evaluation recorded"):
        assert message in page.text
    assert "svg" not in page.tags


def test_single_step_and_zero_gap(tmp_path):
    """Nothing to stack over and nothing positive for a log axis."""
    rows = [{"step": 0, "phase": "rl", "gap/mean": 0.0, "gap/max": 0.0, "time/update": 1.0, "verdict/wrong": 0}]
    assert len(plots.draw_plots(rows, {})) == 2


def test_long_runs_stay_small_and_keep_maxima():
    rows = [{"step": step, "reward/mean": 0.5, "gap/max": 1e-6, "time/update": 1.0} for step in range(20_000)]
    rows[12_345]["gap/max"] = 7.0
    svgs = plots.draw_plots(rows, {})
    assert len(svgs) == 3 and sum(map(len, svgs)) < 150_000
    steps, values = figures.thin(*figures.collect_series(rows, "gap/max"), np.nanmax)
    assert len(steps) == 400 and values.max() == 7.0
    assert (np.diff(steps) > 0).all()


def test_series_with_gaps():
    rows = [{"step": 3, "a": 1.0}, {"step": 4}, {"step": 5, "a": None}]
    steps, values = figures.collect_series(rows, "a")
    assert steps.tolist() == [3, 5] and values[0] == 1.0 and math.isnan(values[1])
    assert plots.draw_plots([{"step": 0, "reward/mean": None}], {}) == []


def test_gold_stands_beside_the_reward_and_raised_flags_have_their_plot():
    def titles(rows):
        return [re.search('aria-label="([^"]*)"', svg)[1] for svg in plots.draw_plots(rows, {})]

    row = {"reward/mean": 0.5, "part/gold": 0.25, "audit/any": 0.5, "audit/exits": 0.5, "audit/inspects": 0.0}
    rows = [{"step": step, **row} for step in range(3)]
    assert titles(rows) == ["Reward", "Reward against gold score", "Hacking audit: exits"]
    svg = plots.draw_plots([{**rows[0], "eval/t/accuracy": 1.0, "eval/t/part/gold": 0.2}, *rows[1:]], {})[1]
    assert all(f">{label}<" in svg for label in ("reward", "gold score", "gold, held-out t"))
    both = [{**row, "audit/inspects": 0.1} for row in rows]
    assert titles(both)[2] == "Hacking audit" and ">any<" in plots.draw_plots(both, {})[2]
    clean = [{**row, "audit/any": 0.0, "audit/exits": 0.0} for row in rows]
    assert titles(clean) == ["Reward", "Reward against gold score"]  # nothing raised: no plot
    del clean[0]["part/gold"], clean[1]["part/gold"], clean[2]["part/gold"]
    assert titles(clean) == ["Reward"]


def test_status_colours_cover_the_statuses():
    assert set(plots._STATUS_COLOURS) == set(types.STATUSES)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_files_are_named(tmp_path, content):
    with pytest.raises(errors.WorkdirError, match=r"no config\.json"):
        report.write_report(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(errors.WorkdirError, match=r"result\.json is not"):
        report.write_report(tmp_path)


def test_lost_steps_are_told(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 3}\n')
    assert "steps without metrics: 2" in Page(report.write_report(tmp_path)).text
