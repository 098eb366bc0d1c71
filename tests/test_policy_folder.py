"""Policies as folders."""

import dataclasses
import json
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlvr import errors, fingerprint, parts
from rlvr.checkpoint import save_params
from rlvr.mesh import MeshConfig, make_mesh
from rlvr.policy.config import PolicyConfig
from rlvr.policy.transformer import Policy
from rlvr.policy_folder import load_params, load_policy, save_policy
from rlvr.text.tokenizer import ByteTokenizer
from tests import tiny

CONFIG = tiny.make_config().policy

pytestmark = pytest.mark.timeout(900)  # on a busy machine compiling takes minutes


@pytest.fixture(scope="module")
def params():
    return jax.jit(Policy(CONFIG).init)(jax.random.key(0))


def test_policy_folder_round_trip(tmp_path, params):
    save_policy(tmp_path / "policy", CONFIG, params, ByteTokenizer())
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {"params", "policy.json", "tokenizer"}
    loaded = load_policy(tmp_path / "policy")
    assert loaded.policy.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert loaded.tokenizer.encode("1+2=") == ByteTokenizer().encode("1+2=")
    with pytest.raises(errors.WeightsError, match="exists and is not an empty folder"):
        save_policy(tmp_path / "policy", CONFIG, params, ByteTokenizer())
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_folder_that_cannot_be_made_is_refused_before_orbax_is_asked(tmp_path, params, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(ocp, "StandardCheckpointer", None)
    with pytest.raises(errors.WeightsError, match=r"file/policy cannot be written: .*Not a directory"):
        errors.check_new_folder(tmp_path / "file" / "policy")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        save_params(tmp_path / "file" / "policy.partial" / "params", params)
    errors.check_new_folder(tmp_path / "new" / "policy")
    assert [path.name for path in (tmp_path / "new").iterdir()] == []


def test_a_runs_workdir_is_a_policy_folder():
    workdir = tiny.reference_run()
    loaded = load_policy(workdir)
    assert fingerprint.hash_params(loaded.params) == tiny.read_result(workdir)["params_sha256"]
    assert loaded.policy.config == CONFIG


def test_a_run_starts_from_another_runs_workdir():
    """`checkpoint` takes a workdir as `load_policy` does."""
    config = tiny.make_config()
    config.checkpoint = str(tiny.reference_run())
    params = parts.initial_params(config, Policy(CONFIG), make_mesh(MeshConfig()))
    assert fingerprint.hash_params(params) == tiny.read_result(tiny.reference_run())["params_sha256"]


def without(tree, *path):
    tree = dict(tree)
    tree[path[0]] = without(tree[path[0]], *path[1:]) if len(path) > 2 else {
        name: leaf for name, leaf in tree[path[0]].items() if name != path[1]
    }  # fmt: skip
    return tree


def test_tensors_that_do_not_fit_are_named(tmp_path, params):
    params = jax.tree.map(np.asarray, params)
    save_params(tmp_path / "missing", without(params, "final_norm", "scale") | {"final_norm": {"shift": np.ones(16)}})
    with pytest.raises(errors.WeightsError, match=r"tensor final_norm/scale \(16,\) is missing"):
        load_params(tmp_path / "missing", CONFIG, None)
    save_params(tmp_path / "left_over", params | {"head": {"kernel": np.ones((16, 264))}})
    with pytest.raises(errors.WeightsError, match=r"tensor head/kernel \(16, 264\) belongs to no parameter"):
        load_params(tmp_path / "left_over", CONFIG, None)
    save_params(tmp_path / "misshapen", params | {"embed": {"table": np.ones((265, 16))}})
    with pytest.raises(errors.WeightsError, match=r"tensor embed/table is \(265, 16\); the policy wants \(264, 16\)"):
        load_params(tmp_path / "misshapen", CONFIG, None)
    with pytest.raises(errors.WeightsError, match="there are no parameters at"):
        load_params(tmp_path / "nowhere", CONFIG, None)
    for path in (tmp_path / "misshapen").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(errors.WeightsError, match="cannot be read"):
        load_params(tmp_path / "misshapen", CONFIG, None)


def policy_json(**changes):
    """A policy.json with some fields changed."""
    return json.dumps(dataclasses.asdict(PolicyConfig()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"holds no policy: .*policy\.json is missing"),
        ('{"dim": ', r"policy\.json is not JSON"),
        ("[1]", r"policy\.json: "),
        (json.dumps({"dims": 16}), r"policy\.json: .*dims"),
        (policy_json(dim=0), r"policy\.json: policy\.dim=0 must be at least 1"),
        (policy_json(dim="wide"), r"policy\.json: "),
        (policy_json(rope={"theta": 1.0, "speed": 2}), r"policy\.json: .*speed"),
    ],
)
def test_policy_json_that_cannot_be_used(tmp_path, text, message):
    if text is not None:
        (tmp_path / "policy.json").write_text(text)
    with pytest.raises(errors.WeightsError, match=message):
        load_policy(tmp_path)
