"""Which runs can be lanes of one program, and which can be none."""

import dataclasses
import re

import pytest

from rlvr import errors
from rlvr.config import to_dict
from rlvr.program import lanes
from rlvr.program.support import check_expressible
from tests.program.runs import make_config


def key(changes=(), **own):
    return lanes.structure_key(lanes.split(make_config(changes, **own))[0])


def test_what_is_only_computed_with_is_no_structure():
    base = key()
    for changes in (
        {"objective.clip_high": 0.5},
        {"optimizer.learning_rate": 1e-5},
        {"rollout.temperature": 0.7},
        {"objective.divergence": 0.3, "objective.max_weight": 2.0},
    ):
        assert key(changes) == base, changes
    assert key(seed=9, name="other") == base
    bonus = {"objective.entropy_coef": 0.1}
    assert key(bonus) == key({"objective.entropy_coef": 0.2}) != base
    for changes in ({"objective.advantage": "rloo"}, {"optimizer.warmup_steps": 5}, {"rollout.group_size": 8}):
        assert key(changes) != base, changes


def test_the_scalars_put_back_are_the_config():
    changes = {"objective.clip_high": 0.3, "objective.correction.high": 3.0, "reward.length.linear": 0.5}
    config = make_config(changes, seed=7, name="seven")
    structure, scalars = lanes.split(config)
    names = (*lanes.COMPUTED, *lanes.SWITCHING)
    again = lanes.insert(structure, scalars, names)
    assert to_dict(dataclasses.replace(again, seed=7, name="seven")) == to_dict(config)
    assert config.objective.clip_high == 0.3  # and the config itself was not touched
    for name in names:
        lanes._read(config, name)  # every name is that of a field


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout.top_p": 0.9}, "rollout.top_p=0.9 cannot be part of one program (accepted: 1.0)"),
        ({"policy.moe_layers": (0,)}, "policy.moe_layers=[0] cannot be part of one program"),
        ({"update.epochs": 2}, "update.epochs=2 cannot be part of one program"),
        ({"objective.advantage": "gae"}, "objective.advantage='gae' cannot be part of one program"),
        ({"objective.selection.covariance": "clip_cov"}, "objective.selection.covariance='clip_cov' cannot be"),
        ({"reward.audit_penalty": 1.0}, "reward.audit_penalty=1.0 cannot be part of one program"),
        ({"policy.vocab_size": 1 << 22}, "make 160 tokens a minibatch, whose logits over policy.vocab_size=4194304"),
    ],
)
def test_what_one_program_cannot_express_is_refused_by_name(changes, message):
    check_expressible(make_config())
    with pytest.raises(errors.ConfigError, match=re.escape(message)):
        check_expressible(make_config(changes))


def test_a_verifier_of_the_host_is_refused_by_name():
    config = make_config()
    task_set = dataclasses.replace(config.data.tasks[0], options={"digits": 1})
    numeric = dataclasses.replace(config, data=dataclasses.replace(config.data, tasks=(task_set,)))
    with pytest.raises(errors.ConfigError, match=re.escape("data.tasks[0].options['verifier']='numeric' cannot be")):
        check_expressible(numeric)
