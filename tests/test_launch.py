"""The entry points that use a policy: sample, score, evaluate; and SmolLM2 against transformers."""

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import absl.app
import absl.flags
import jax
import numpy as np
import pytest

import launch as launchers
from launch import cli
from rlvr import errors
from rlvr.data.pipeline import make_train_stream
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Policy
from rlvr.policy_folder import save_policy
from rlvr.text.tokenizer import ByteTokenizer
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ("", f"{cli.TPU_FLAG}={cli.TPU_VALUE}"),
        ("--of_jax=true", f"--of_jax=true {cli.TPU_FLAG}={cli.TPU_VALUE}"),
        (f"{cli.TPU_FLAG}=5", f"{cli.TPU_FLAG}=5"),
    ],
)
def test_the_flag_for_tpus_is_added_once(given: str, then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
    monkeypatch.setattr(cli.app, "run", lambda *args, **kwargs: None)
    cli.run(lambda argv: 0)
    assert os.environ["LIBTPU_INIT_ARGS"] == then


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    config = PolicyConfig(
        dim=24, layers=2, query_heads=4, kv_heads=2, head_size=6, hidden=20, moe_layers=(1,), expert_hidden=12
    )
    save_policy(folder, config, jax.jit(Policy(config).init)(jax.random.key(3)), ByteTokenizer())
    return folder


def launch(module: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs an entry point as a user does, on one CPU device."""
    env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HOME": "/tmp"}
    command = [sys.executable, "-m", f"launch.{module}", *flags]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


@contextlib.contextmanager
def own_flags() -> Iterator[None]:
    """Puts the launchers that are imported, and their flags, away for a while: several declare the same names."""
    known = absl.flags.FLAGS

    def put_away() -> tuple[dict[str, Any], dict[str, Any]]:
        modules = {name: sys.modules.pop(name) for name in list(sys.modules) if re.match(r"launch\.(?!cli$)", name)}
        for name in modules:
            vars(launchers).pop(name.split(".")[1], None)
        # One that was put back is of no module.
        mine = [name for name in known if (known.find_module_defining_flag(name) or "launch").startswith("launch")]
        return modules, {name: known[name] for name in mine}

    modules, flags = put_away()
    for name in flags:
        delattr(known, name)
    others = set(known)
    try:
        yield
    finally:
        known.unparse_flags()
        put_away()
        for name in set(known) - others:
            delattr(known, name)
        for name, flag in flags.items():
            known[name] = flag
        sys.modules.update(modules)
        for name, module in modules.items():
            if name.count(".") == 1:
                setattr(launchers, name.split(".")[1], module)


def call(module: str, *flags: str) -> None:
    """Calls an entry point in this process, which saves the start of one; what `cli.run` would report is raised."""
    with own_flags(), mock.patch.object(sys, "argv", [module, *flags]):
        main = importlib.import_module(f"launch.{module}").main
        main(cli.parse_flags(sys.argv))


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sampled_logprobs_are_what_score_says_and_depend_on_the_seed_only(checkpoint: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "p.jsonl", {"prompt": "1+2=", "id": 7}, {"prompt": "a much longer prompt, really"})
    outputs = []
    for name, flags in {"a": ["--slots=3"], "b": ["--slots=32"], "other": ["--seed=1"]}.items():
        out = tmp_path / f"{name}.jsonl"
        done = launch(
            "sample", f"--checkpoint={checkpoint}", f"--prompts={prompts}", f"--output={out}", "--n=3",
            "--max_tokens=12", *flags,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(read(out))
    first, again, other = outputs
    assert [row["tokens"] for row in first] == [row["tokens"] for row in again]
    assert [row["tokens"] for row in first] != [row["tokens"] for row in other]
    assert [(row.get("id"), row["sample"]) for row in first] == [
        (7, 0),
        (7, 1),
        (7, 2),
        (None, 0),
        (None, 1),
        (None, 2),
    ]
    assert len({tuple(row["tokens"]) for row in first}) == 6
    assert all(row["stop_reason"] == ("stop" if row["tokens"][-1] == 257 else "length") for row in first)

    rows = [{"tokens": list(row["prompt"].encode()) + row["tokens"]} for row in first]
    scored = tmp_path / "scored.jsonl"
    done = launch(
        "score", f"--checkpoint={checkpoint}", f"--input={write(tmp_path / 't.jsonl', *rows)}", f"--output={scored}"
    )
    assert done.returncode == 0, done.stderr
    for row, score in zip(first, read(scored), strict=True):
        assert len(score["logprobs"]) == len(score["tokens"]) - 1
        np.testing.assert_allclose(score["logprobs"][-len(row["tokens"]) :], row["logprobs"], atol=2e-5)


def test_evaluate_reports_every_set_and_keeps_the_samples(checkpoint: Path, tmp_path: Path) -> None:
    done = launch(
        "evaluate", f"--checkpoint={checkpoint}", "--config=tests/configs/tiny.py", f"--output={tmp_path / 'out'}"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    rows = read(tmp_path / "out" / "samples.jsonl")
    for name, summary in result["eval"].items():
        own = [row for row in rows if row["set"] == name]
        assert summary["n"] == len(own) > 0
        assert summary["accuracy"] == np.mean([row["status"] == "correct" for row in own])
        assert summary["interval"][0] <= summary["accuracy"] <= summary["interval"][1]


def test_evaluate_computes_as_the_config_says(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint gives the shape of the policy only: types, backends and the mesh are the config's, as in a run."""
    monkeypatch.setattr("rlvr.rollout.engine.Engine", engine := mock.Mock(side_effect=InterruptedError))
    fields = ("policy.dtype=bfloat16", "policy.moe_backend=ragged", "mesh.tensor=2", "mesh.data=4")
    flags = [f"--config.{field}" for field in fields]
    with pytest.raises(InterruptedError):
        call("evaluate", f"--checkpoint={checkpoint}", "--config=tests/configs/tiny.py", *flags)
    policy, mesh = engine.call_args.args[0].config, engine.call_args.args[3]
    assert (policy.dim, policy.dtype, policy.moe_backend) == (24, "bfloat16", "ragged")
    assert (mesh.shape["data"], mesh.shape["tensor"]) == (4, 2)


def test_pass_rates_are_measured_and_read(checkpoint: Path, tmp_path: Path) -> None:
    rates = tmp_path / "rates.jsonl"
    done = launch(
        "evaluate", f"--checkpoint={checkpoint}", "--config=tests/configs/tiny.py", f"--pass_rates={rates}",
        "--samples=3", "--config.engine.slots=16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["pass_rates"]["sums"]
    rows = read(rates)
    assert told["problems"] == len(rows) == 20 and told["unscorable"] == 0
    assert {row["task"] for row in rows} == {"sums"} and all(row["n"] == 3 >= row["correct"] >= 0 for row in rows)
    assert told["mean"] == pytest.approx(sum(row["correct"] for row in rows) / 60)
    config = tiny.make_config().data
    config.pass_rates = str(rates)
    assert make_train_stream(config).pass_rates == {row["prompt_id"]: row["correct"] / 3 for row in rows}


@pytest.mark.parametrize(
    ("module", "row", "message"),
    [
        ("sample", {"text": "hello"}, "row 1 has neither field; accepted: one of prompt, messages"),
        ("sample", {"messages": [{"role": "user", "content": "hi"}]}, "row 1: "),
        ("score", {"tokens": [5]}, "row 1: tokens=[5] must be a list of at least 2 integers"),
        ("score", {"tokens": [5, 9000]}, "row 1: token 9000 is not in the vocabulary 0 to 263"),
    ],
)
def test_a_bad_row_is_named(module: str, row: dict, message: str, checkpoint: Path, tmp_path: Path) -> None:
    flag = "prompts" if module == "sample" else "input"
    rows, out = write(tmp_path / "rows.jsonl", row), tmp_path / "out.jsonl"
    done = launch(module, f"--checkpoint={checkpoint}", f"--{flag}={rows}", f"--output={out}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr and not out.exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hi"}, "row 7: messages='hi' must be a list of turns"),
        ({"messages": 5}, "row 7: messages=5 must be a list of turns"),
        ({"prompt": 5}, "row 7: prompt=5 must be a text"),
        ({"prompt": None}, "row 7: prompt=None must be a text"),
    ],
)
def test_what_is_sampled_has_its_type(row: dict, message: str) -> None:
    with own_flags(), pytest.raises(errors.DataError, match=message):
        importlib.import_module("launch.sample").encode_row(ByteTokenizer(), row, 7)


def test_a_row_longer_than_the_context_is_named() -> None:
    with own_flags():
        check = importlib.import_module("launch.sample").check_lengths
        check([[1] * 4, [1] * 6], 10, 16)
        check([[1] * 4, [1] * 6], 10, 0)
        with pytest.raises(errors.DataError, match=r"row 2: its prompt of 7 tokens and --max_tokens=10 .*_length=16"):
            check([[1] * 4, [1] * 7], 10, 16)
    with own_flags():
        read_tokens = importlib.import_module("launch.score").read_tokens
        rows = [{"tokens": [1] * 16}, {"tokens": [1] * 17}]
        assert read_tokens(rows, PolicyConfig(context_length=0)) == [row["tokens"] for row in rows]
        with pytest.raises(errors.DataError, match=r"row 2: 17 tokens are more than policy\.context_length=16"):
            read_tokens(rows, PolicyConfig(context_length=16))


@pytest.mark.parametrize(
    "module",
    [
        *("sample", "score", "evaluate", "judge", "verify", "train", "grid", "report", "compile"),
        *("import_weights", "export_weights", "export_adapter", "upcycle"),
    ],
)
def test_a_flag_without_its_dashes_is_refused(module: str) -> None:
    with own_flags(), pytest.raises(absl.app.UsageError, match="unexpected argument 'temperature=0': flags begin"):
        importlib.import_module(f"launch.{module}").main([module, "temperature=0"])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--samples=4", "--samples=4 is of --pass_rates"),
        ("--config.data.tasks[0].eval_size=0", r"nothing to evaluate: every data\.tasks\[\*\]\.eval_size is 0"),
    ],
)
def test_an_evaluation_without_its_object_is_refused(flag: str, message: str) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        call("evaluate", "--checkpoint=nowhere", "--config=tests/configs/tiny.py", flag)


@pytest.mark.parametrize(
    ("module", "flags", "error", "message"),
    [
        ("sample", ["--prompts=p", "--seed=4294967296"], SystemExit, "flag --seed=4294967296"),
        ("upcycle", ["--seed=4294967296"], SystemExit, "flag --seed=4294967296"),
        ("export_weights", ["--shard_gb=inf"], errors.ConfigError, "--shard_gb=inf must be a finite number"),
        ("export_weights", ["--shard_gb=nan"], errors.ConfigError, "--shard_gb=nan must be a finite number"),
    ],
)
def test_a_flag_out_of_its_range_is_refused(
    module: str,
    flags: list[str],
    error: type[BaseException],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(error) as raised:
        call(module, "--checkpoint=nowhere", f"--output={tmp_path / 'out'}", *flags)
    assert message in f"{raised.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("where", ["", "rows.jsonl/out.jsonl"])
@pytest.mark.parametrize(
    ("module", "flag", "others"),
    [
        ("sample", "output", ["--prompts=rows.jsonl"]),
        ("score", "output", ["--input=rows.jsonl"]),
        ("evaluate", "pass_rates", [f"--config={ROOT / 'tests/configs/tiny.py'}"]),
        ("evaluate", "output", [f"--config={ROOT / 'tests/configs/tiny.py'}"]),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_policy_is_read(
    module: str, flag: str, others: list[str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", {"prompt": "hi"})
    target = tmp_path / (where or ("rows.jsonl" if (module, flag) == ("evaluate", "output") else "folder"))
    if not where and target.name == "folder":
        target.mkdir()
    with pytest.raises(errors.DataError, match=f"--{flag}: {target}.* cannot be written: "):
        call(module, "--checkpoint=nowhere", f"--{flag}={target}", *others)
    assert {path.name for path in tmp_path.iterdir()} <= {"rows.jsonl", "folder"}


def test_a_folder_without_a_policy_is_refused(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"tokens": [1, 2]})
    done = launch("score", f"--checkpoint={tmp_path}", f"--input={rows}", f"--output={tmp_path / 'out.jsonl'}")
    assert done.returncode == 1
    assert f"error: {tmp_path} holds no policy" in done.stderr


def test_smollm2_agrees_with_transformers_on_the_dequantised_weights() -> None:
    """Greedy tokens equal; log-probs within 2e-4 in float32 (the real weights, where they were fetched)."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = ROOT / "weights" / "smollm2-135m-instruct"
    if not (folder / "policy.json").exists():
        pytest.skip("SmolLM2 was not fetched (scripts/fetch_smollm2.sh)")
    from launch.score import score_rows
    from rlvr import keys
    from rlvr.mesh import MeshConfig, make_mesh
    from rlvr.policy_folder import load_policy
    from rlvr.rollout.config import EngineConfig
    from rlvr.rollout.engine import Engine
    from rlvr.text.chat import encode_prompt
    from rlvr.types import Request
    from tests.reference import llama_from_params

    mesh = make_mesh(MeshConfig())
    questions = ["What is 7 + 8?", "Name the capital of France.", "Write a haiku about rivers and stones."]
    with jax.set_mesh(mesh):
        loaded = load_policy(folder, mesh)
        prompts = [encode_prompt(loaded.tokenizer, [{"role": "user", "content": q}]) for q in questions]
        config = EngineConfig(slots=8, max_prompt_tokens=48, max_new_tokens=32, prefill_rows=8)
        engine = Engine(loaded.policy, config, loaded.tokenizer.stop_ids, mesh)
        requests = [Request(i, i, 0, tuple(p)) for i, p in enumerate(prompts)]
        ours = engine.generate(loaded.params, requests, keys.make_key(0, "sample"), temperature=0.0)
        rows = [p + c.tokens.tolist() for p, c in zip(prompts, ours, strict=True)]
        scores = score_rows(loaded, rows, mesh, 512)
    model = llama_from_params(transformers, torch, loaded.policy.config, loaded.params)
    largest = 0.0
    for prompt, completion, row, score in zip(prompts, ours, rows, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
            greedy = model.generate(
                torch.tensor([prompt]), max_new_tokens=32, do_sample=False, pad_token_id=0,
                eos_token_id=list(loaded.tokenizer.stop_ids),
            )  # fmt: skip
        theirs = logits[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0].numpy()
        largest = max(largest, float(np.max(np.abs(theirs - np.array(score)))))
        assert greedy[0, len(prompt) :].tolist() == completion.tokens.tolist()
    print(f"largest log-prob difference {largest:.2e}")
    assert largest < 2e-4


def test_a_policy_of_ours_judges_a_file(checkpoint: Path, tmp_path: Path) -> None:
    """The replies of a random policy are no grades: what counts is that verify finds them, and no more is sampled."""
    responses = [{"completion": text, "rubric": ["is kind"]} for text in ("hello", "go away", "hello")]
    rows = write(tmp_path / "rows.jsonl", *responses, {"completion": "", "rubric": ["is kind"]}, {"rubric": []})
    drawn = (
        f"--judge_cache={tmp_path / 'cache'}",
        "--judge_samples=2",
        "--judge_temperature=1",
        "--judge_max_tokens=5",
    )
    results = []
    for _ in range(2):
        done = launch("judge", f"--checkpoint={checkpoint}", f"--input={rows}", *drawn)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT ")))
    assert [result["sampled"] for result in results] == [4, 0] and results[0]["rows_without_question"] == 2
    replies = [path.read_text() for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(replies) == 4 and len(set(replies)) > 2
    out = tmp_path / "verdicts.jsonl"
    name = f"--judge_model={results[0]['judge_model']}"
    done = launch("verify", "--verifier=rubric", name, f"--input={rows}", f"--output={out}", "--workers=1", *drawn)
    assert done.returncode == 0, done.stderr
    verdicts = read(out)
    assert [verdict["status"] for verdict in verdicts] == ["error", "error", "error", "unparsed", "error"]
    assert all("cannot be used: " in verdict["detail"] for verdict in verdicts[:3])
    assert "the field 'completion' is missing" in verdicts[4]["detail"]
