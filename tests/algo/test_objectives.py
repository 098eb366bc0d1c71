"""The config of an objective: what is refused, what is warned about, and what each needs of a step."""

import dataclasses
import re
from typing import Any

import pytest

from rlvr import errors
from rlvr.algo.compatibility import warn
from rlvr.algo.correction import CorrectionConfig
from rlvr.algo.objectives import ObjectiveConfig
from rlvr.algo.presets import PRESETS, preset
from rlvr.algo.selection import SelectionConfig
from rlvr.algo.value import ValueConfig

TIS = CorrectionConfig("tis")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"surrogate": "clp"}, "objective.surrogate='clp'.*'clip'"),
        ({"ratio": "seq"}, "objective.ratio='seq' is not known.*token, seq_geo, seq_prod"),
        ({"old": "prox"}, "objective.old='prox'"),
        ({"advantage": "gea"}, "objective.advantage='gea' is not known; did you mean 'gae'"),
        ({"whiten": "token"}, "objective.whiten='token'.*'tokens'"),
        ({"aggregation": "mean"}, "objective.aggregation"),
        ({"kl": "k1", "kl_coef": 0.1}, "objective.kl='k1'.*zero in expectation.*k1_in_reward"),
        ({"kl": "k3"}, "set both, or neither"),
        ({"kl_coef": 0.1}, "set both, or neither"),
        ({"clip_low": 1.5}, "objective.clip_low"),
        ({"clip_high": -0.1}, "objective.clip_high"),
        ({"std_ddof": 2}, "objective.std_ddof"),
        ({"pass_k": 0}, "objective.pass_k"),
        ({"max_weight": 0.5}, "objective.max_weight"),
        ({"entropy_coef": float("nan")}, "objective.entropy_coef"),
        ({"sapo_negative": 0.0}, "objective.sapo_negative"),
        ({"correction": CorrectionConfig("tsi")}, "objective.correction.rule='tsi'.*'tis'"),
        ({"correction": CorrectionConfig("tis", high=0.5)}, "objective.correction.high=0.5 must be at least 1"),
        ({"correction": CorrectionConfig("icepop")}, "objective.correction.low=0.0.*'icepop'.*or use 'mis'"),
        ({"correction": CorrectionConfig("mis", low=0.5)}, "low=0.5 is used by .*'icepop' only"),
        ({"selection": SelectionConfig(top_entropy=0.0)}, "objective.selection.top_entropy"),
        ({"selection": SelectionConfig(covariance="cov")}, "objective.selection.covariance='cov'"),
        # Parts that do not go together.
        ({"correction": TIS}, r"correction.rule='tis' with objective.old='rollout': .*counted twice.*recomputed"),
        (
            {"correction": CorrectionConfig(reject="outlier")},
            r"correction.reject='outlier' with objective.old='rollout'",
        ),
        ({"surrogate": "cispo", "correction": TIS}, "correction.rule='tis' with objective.old='rollout'"),
        (
            {"surrogate": "cispo", "ratio": "seq_geo"},
            "ratio='seq_geo' with objective.surrogate='cispo': .*accepted: token",
        ),
        ({"surrogate": "gmpo", "ratio": "seq_geo"}, "surrogate='gmpo': it makes the geometric mean itself"),
        ({"surrogate": "dppo_tv", "old": "recomputed"}, "old='recomputed' with objective.surrogate='dppo_tv'"),
        ({"surrogate": "dppo_kl", "correction": TIS}, "'dppo_kl': its ratio spans all.*twice"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "dual_clip=3.0 is a bound of .*'clip', not 'cispo'"),
        ({"dual_clip": 0.9}, "dual_clip=0.9 must be above 1"),
        ({"ratio_cap": 1.1}, "ratio_cap=1.1 must be above 1 . objective.clip_high=1.2"),
        ({"ratio_cap": 4.0, "dual_clip": 3.0}, "set one"),
        ({"surrogate": "aspo", "selection": SelectionConfig(top_entropy=0.2)}, "quantile of its own"),
        ({"entropy_target": 0.2, "entropy_step": 0.0}, "would never move"),
        ({"entropy_target": 0.2, "entropy_coef": 2.0}, "above objective.entropy_max=1.0"),
        ({"selection": SelectionConfig(covariance="kl_cov"), "old": "current"}, "'kl_cov' with .*would be 0"),
        ({"selection": SelectionConfig(second_moment=-1.0)}, "selection.second_moment=-1.0 must be at least 0"),
        ({"surrogate": "vespo"}, "ratio='token' with objective.surrogate='vespo'.*accepted: seq_prod"),
        ({"surrogate": "dro", "ratio": "seq_geo"}, "'dro': its quadratic term is one of tokens"),
        ({"dro_beta": -1.0}, "objective.dro_beta"),
        ({"imitation_coef": -1.0}, "objective.imitation_coef"),
        ({"value": ValueConfig(lam=2.0)}, "objective.value.lam=2.0"),
        ({"value": ValueConfig(lam=0.5)}, "objective.value.lam=0.5 with .*'grpo', which has no critic .accepted: gae"),
        ({"advantage": "gae", "surrogate": "gmpo"}, "'gae' with objective.surrogate='gmpo'.*whole sequences"),
        ({"advantage": "gae", "ratio": "seq_prod"}, "'gae' with .*ratio='seq_prod'"),
        ({"advantage": "gae", "correction": CorrectionConfig(opsm=0.5)}, "opsm=0.5 with objective.advantage='gae'"),
        ({"advantage": "gae", "value": ValueConfig(lam=0.5, length_alpha=0.1)}, "which takes its place; set one"),
        ({"vespo_positive": (2.0,)}, r"objective.vespo_positive=\(2.0,\) must be two positive numbers"),
    ],
)
def test_what_cannot_work_is_refused_and_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.ConfigError, match=words):
        ObjectiveConfig(**fields).validate()


@pytest.mark.parametrize(
    ("fields", "minibatches", "words"),
    [
        ({"ratio": "seq_geo"}, 1, "clip_high=0.2 with objective.ratio='seq_geo'.*never clips.*0.0003 and 0.0004"),
        ({"ratio": "seq_geo", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "token_mean"}, 1, "is not GSPO"),
        ({"ratio": "seq_prod", "aggregation": "token_mean"}, 1, "that of seq_mean_token_sum"),
        ({"surrogate": "gmpo", "aggregation": "token_mean"}, 1, "is not GMPO"),
        (
            {"surrogate": "reinforce"},
            4,
            "4 optimizer steps on each rollout .update.minibatches, update.epochs.: all but the first",
        ),
        ({"old": "current"}, 4, "ratio is always 1"),
    ],
)
def test_what_is_likely_not_meant_is_said(fields: dict[str, Any], minibatches: int, words: str) -> None:
    config = ObjectiveConfig(**fields)
    config.validate()
    (told,) = warn(config, minibatches)
    assert re.search(words, told)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_nobodys(name: str) -> None:
    config = preset(name)
    config.validate()
    assert list(warn(config, 1)) == []
    config.correction.rule = config.selection.covariance = "changed"
    assert preset(name).correction.rule != "changed" and preset(name).selection.covariance != "changed"
    assert preset(name, clip_high=0.77).clip_high == 0.77
    assert dataclasses.replace(config, **{}) is not config


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match=r"objective preset='gsp0'.*'gspo'"):
        preset("gsp0")


def test_which_objectives_need_what() -> None:
    plain = ObjectiveConfig()
    for need in ("reference", "all_rows", "scores", "proximal", "measurement"):
        assert not getattr(plain, f"needs_{need}")()
    in_reward = ObjectiveConfig(kl="k1_in_reward", kl_coef=0.1)
    assert in_reward.needs_reference() and not in_reward.needs_all_rows()
    assert ObjectiveConfig(kl="k2", kl_coef=0.1).needs_all_rows()
    for name in ("entropy_coef", "entropy_target", "balance_coef", "z_coef"):
        assert ObjectiveConfig(**{name: 0.1}).needs_all_rows()
    # A token of a sequence without advantage may be one of those that kl_cov holds back.
    assert preset("kl_cov").needs_all_rows() and not preset("clip_cov").needs_all_rows()
    assert {n for n in PRESETS if preset(n).needs_scores()} == {
        *("gspo", "gspo_token", "luspo", "gmpo", "vespo", "opsm")
    }
    assert {n for n in PRESETS if preset(n).needs_measurement()} == {
        *("aspo", "clip_cov", "kl_cov", "top_entropy", "m2po")
    }
    assert {n for n in PRESETS if preset(n).needs_proximal()} == {
        *("decoupled", "tis", "seq_tis", "mis", "seq_mis", "icepop", "seq_mask_tis")
    }
    assert {n for n in PRESETS if preset(n).needs_values()} == {"ppo", "vapo"}
    assert preset("ppo").needs_all_rows() and ObjectiveConfig(imitation_coef=0.1).needs_all_rows()
    assert ObjectiveConfig(old="current", correction=TIS).needs_scores()
    assert not ObjectiveConfig(old="current").needs_scores()
