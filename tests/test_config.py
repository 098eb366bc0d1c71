"""The config: overrides, what is refused and how, the hash, and the differences between two runs."""

import dataclasses

import pytest
from absl import flags
from ml_collections import config_flags

from rlvr import config as configs
from rlvr import errors
from rlvr.algo.presets import preset
from rlvr.checks import resolve, validate
from rlvr.config import config_hash, differences, to_dict
from tests import tiny


def change(config, **changes):
    """Returns the config with fields set by their dotted names, dots written as two underscores."""
    for name, value in changes.items():
        *path, last = name.split("__")
        owner = config
        for part in path:
            owner = getattr(owner, part)
        assert hasattr(owner, last), name
        setattr(owner, last, value)
    return config


def parse(*overrides, file=tiny.CONFIG):
    values, line = flags.FlagValues(), ["train", *overrides]
    file = str(tiny.ROOT / file)
    holder = config_flags.DEFINE_config_file("config", file, "", flag_values=values, sys_argv=line)
    values(line)
    return holder.value


def test_overrides_have_the_type_of_their_field():
    config = parse(
        "--config.steps=7",
        "--config.objective.clip_high=0.28",
        "--config.objective.kl=k3",
        "--config.objective.kl_coef=1",
        "--config.policy.renormalize_gates=false",
        "--config.policy.moe_layers=(0,1)",
        "--config.warm_start.optimizer.learning_rate=1e-4",
        "--config.data.tasks[0].eval_size=5",
        "--config.name=7",
    )
    expected = change(
        tiny.make_config(),
        steps=7,
        objective__clip_high=0.28,
        objective__kl="k3",
        objective__kl_coef=1.0,
        policy__renormalize_gates=False,
        policy__moe_layers=(0, 1),
        warm_start__optimizer__learning_rate=1e-4,
        name="7",
    )
    expected.data.tasks[0].eval_size = 5
    assert config == expected
    assert type(config.objective.kl_coef) is float and type(config.steps) is int
    # The same value written in another way is the same run.
    assert config_hash(config) == config_hash(expected)


def test_a_preset_is_chosen_with_the_file_and_its_fields_overridden():
    plain = parse(file="configs/quickstart.py")
    assert plain.objective == preset("dapo")
    config = parse(
        "--config.objective.clip_high=5e-4",
        "--config.objective.correction.opsm=0.5",
        "--config.objective.selection.top_entropy=0.2",
        "--config.reward.length.overlong_buffer=2",
        "--config.reward.parts=('a','b')",
        file="configs/quickstart.py:gspo",
    )
    expected = preset("gspo", clip_high=5e-4)
    expected.correction.opsm, expected.selection.top_entropy = 0.5, 0.2
    assert config.objective == expected and config.reward.length.overlong_buffer == 2
    assert config.reward.parts == ("a", "b")
    with pytest.raises(
        flags.IllegalFlagValueError, match=r"objective preset='gspoo' is not known; did you mean 'gspo'"
    ):
        parse(file="configs/quickstart.py:gspoo")


def test_unlikely_objectives_are_warned_about(caplog):
    config = change(tiny.make_config(), objective__ratio="seq_geo")
    with caplog.at_level("WARNING"):
        resolve(config)
    assert "never clips" in caplog.text


def test_tiny_is_valid():
    assert resolve(tiny.make_config()) == tiny.make_config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout__dynamic_rounds": -1}, r"rollout\.dynamic_rounds=-1 must be at least 0"),
        ({"rollout__oversample": 2.0}, r"rollout\.oversample=2\.0 .*but rollout\.dynamic_rounds=0"),
        (
            {"rollout__dynamic_rounds": 10, "rollout__staleness": 1},
            r"rollout\.dynamic_rounds=10 with rollout\.staleness=1: .*verdicts on the one before",
        ),
        (
            {"rollout__dynamic_rounds": 1, "rollout__group_size": 1, "objective__advantage": "reward"},
            r"rollout\.dynamic_rounds=1 with rollout\.group_size=1: no group of one",
        ),
        ({"rollout__group_size": 1}, r"rollout\.group_size=1 must be at least 2: objective\.advantage='grpo'"),
        ({"rollout__temperature": 0.0}, r"rollout\.temperature=0\.0 must be positive"),
        ({"rollout__temperature": 1e-9}, r"rollout\.temperature=1e-09 must be 0, which is greedy, or at least 1e-06"),
        ({"rollout__temperature": float("nan")}, r"rollout\.temperature=nan must be positive"),
        ({"rollout__prompts": 0}, r"rollout\.prompts=0 must be at least 1"),
        ({"update__minibatches": 3}, r"rollout\.prompts=4 is not a multiple of update\.minibatches=3"),
        ({"update__epochs": 0}, r"update\.epochs=0 must be at least 1"),
        ({"critic__pretrain_steps": 1}, r"critic=.*pretrain_steps=1.* with objective\.advantage='grpo'.*no critic"),
        ({"critic__pretrain_steps": -1}, r"critic\.pretrain_steps=-1 must be at least 0"),
        (
            {"critic__pretrain_steps": 7, "objective__advantage": "gae"},
            r"critic\.pretrain_steps=7 is more than steps=6",
        ),
        (
            {"distill__method": "on_policy", "objective__advantage": "gae"},
            r"objective\.advantage='gae' with distill\.method='on_policy'",
        ),
        ({"critic__optimizer__b1": 2.0}, r"critic\.optimizer\.b1=2\.0"),
        ({"update__micro_tokens": 0}, r"update\.micro_tokens=0 must be at least 1"),
        ({"update__row_tokens": 0}, r"update\.row_tokens=0 must be at least 1"),
        ({"objective__surrogate": "clp"}, r"objective\.surrogate='clp' is not known; did you mean 'clip'\?.*accepted"),
        ({"objective__advantage": "dr-grpo"}, r"objective\.advantage='dr-grpo' .*did you mean 'dr_grpo'\?"),
        ({"objective__aggregation": "token_men"}, r"objective\.aggregation=.*did you mean 'token_mean'\?"),
        ({"objective__kl": "k4", "objective__kl_coef": 0.1}, r"objective\.kl='k4'"),
        ({"objective__kl": "k3"}, r"objective\.kl='k3' with objective\.kl_coef=0\.0: set both, or neither"),
        ({"objective__kl_coef": 0.1}, r"objective\.kl='none' with objective\.kl_coef=0\.1"),
        ({"objective__clip_low": 1.5}, r"objective\.clip_low=1\.5 must be between 0\.0 and 1\.0"),
        ({"objective__clip_high": -0.1}, r"objective\.clip_high=-0\.1 must be at least 0\.0"),
        ({"objective__std_ddof": 2}, r"objective\.std_ddof=2"),
        ({"optimizer__learning_rate": -1.0}, r"optimizer\.learning_rate=-1\.0"),
        ({"optimizer__decay": "cosin"}, r"optimizer\.decay='cosin'.*did you mean 'cosine'\?"),
        ({"optimizer__max_grad_norm": 0.0}, r"optimizer\.max_grad_norm=0\.0 must be positive"),
        ({"warm_start__optimizer__b1": 2.0}, r"warm_start\.optimizer\.b1=2\.0"),
        ({"warm_start__steps": -1}, r"warm_start\.steps=-1"),
        ({"warm_start__rows": 0}, r"warm_start\.rows=0"),
        ({"steps": -1}, r"steps=-1 must be at least 0"),
        ({"seed": 2**32}, r"seed=4294967296 must be between 0 and 4294967295"),
        ({"sample_interval": 0}, r"sample_interval=0"),
        ({"evaluation__interval": 0}, r"evaluation\.interval=0"),
        ({"evaluation__temperature": 9e-7}, r"evaluation\.temperature=9e-07 must be 0, which is greedy, or at"),
        ({"evaluation__temperature": -0.5}, r"evaluation\.temperature=-0\.5"),
        ({"engine__slots": 0}, r"engine\.slots=0"),
        ({"engine__prompt_buckets": (99,)}, r"engine\.prompt_buckets=99 must be between 1 and 6"),
        ({"checkpoints__keep": 0}, r"checkpoints\.keep=0"),
        ({"checkpoints__interval": 0}, r"checkpoints\.interval=0"),
        ({"mesh__tensor": 0}, r"mesh\.tensor=0 must be at least 1"),
        ({"verifiers__workers": 0}, r"verifiers\.workers=0"),
        ({"verifiers__timeout_s": 0.0}, r"verifiers\.timeout_s=0\.0"),
        ({"reward__on_error": "maks"}, r"reward\.on_error='maks'.*did you mean 'mask'\?"),
        ({"policy__kv_heads": 3}, r"policy\.query_heads=4 is not a multiple of policy\.kv_heads=3"),
        ({"policy__head_size": 5}, r"policy\.head_size=5: RoPE needs an even"),
        ({"policy__moe_layers": (2,)}, r"policy\.moe_layers names layer 2; there are layers 0 to 1"),
        ({"policy__experts_per_token": 9}, r"policy\.experts_per_token=9"),
        ({"policy__dtype": "bf16"}, r"policy\.dtype='bf16'"),
        ({"data__tasks": ()}, r"data\.tasks is empty"),
        ({"data__seed": -1}, r"data\.seed=-1"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(errors.ConfigError, match=message):
        validate(change(tiny.make_config(), **changes))


def test_a_checkpoint_that_is_none(tmp_path):
    with pytest.raises(errors.WeightsError, match=r"holds no policy: .*policy\.json is missing"):
        resolve(change(tiny.make_config(), checkpoint=str(tmp_path)))


def test_the_shape_is_the_checkpoints_and_the_way_of_running_ours():
    other = change(tiny.make_config(), checkpoint=str(tiny.reference_run()), policy__dim=99, policy__remat="block")
    resolved = resolve(other)
    assert resolved.policy == dataclasses.replace(tiny.make_config().policy, remat="block")


def test_hash():
    plain = config_hash(tiny.make_config())
    assert plain == config_hash(tiny.make_config())
    assert len(plain) == 16 and int(plain, 16)
    runtime = {"mesh__data": 8, "mesh__tensor": 2, "checkpoints__interval": 99, "checkpoints__keep": 1}
    changes = runtime | {"verifiers__workers": 7, "verifiers__sandbox": "landlock"}
    assert config_hash(change(tiny.make_config(), **changes)) == plain


def leaves(value, prefix=""):
    """Yields (dotted name, value) of every field of a nested dataclass; task sets as one."""
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), prefix + field.name
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, name + "__")
        else:
            yield name, inner


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return value + "x" if isinstance(value, str) else (*value, *value, 7)


@pytest.mark.parametrize("name", [name for name, _ in leaves(configs.ExperimentConfig())])
def test_every_field_but_the_runtimes_is_part_of_the_hash(name):
    """A field added later is hashed unless somebody decides otherwise here."""
    config = configs.ExperimentConfig()
    change(config, **{name: other_value(dict(leaves(config))[name])})
    dotted = name.replace("__", ".")
    runtime = dotted.startswith(("mesh.", "checkpoints."))
    told = ("watchdog_s", "verifiers.workers", "verifiers.sandbox", "warm_start.shared", "update.moments")
    runtime |= dotted in told
    plain = configs.ExperimentConfig()
    assert (config_hash(config) == config_hash(plain)) == runtime
    found = differences(to_dict(plain), to_dict(config))
    assert [line.split(":")[0] for line in found] == ([] if runtime else [dotted])


def test_differences_inside_task_sets():
    other = tiny.make_config()
    other.data.tasks[0].eval_size = 7
    assert differences(to_dict(tiny.make_config()), to_dict(other)) == ["data.tasks.0.eval_size: 8 there, 7 here"]


def test_sequences_longer_than_the_weights_were_made_for_are_refused() -> None:
    config = tiny.make_config()
    config.policy.context_length = 10  # prompts of 6 and completions of 5
    with pytest.raises(errors.ConfigError, match=r"max_prompt_tokens=6 .*max_new_tokens=5 .*context_length=10"):
        validate(config)
    config.policy.context_length = 11
    validate(config)
