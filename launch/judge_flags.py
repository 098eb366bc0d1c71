"""The flags that say how replies of a judge are drawn: the same for whoever samples them and whoever reads them."""

from __future__ import annotations

from absl import flags

from rlvr.verifiers.judges import JudgeConfig

_SAMPLES = flags.DEFINE_integer("judge_samples", JudgeConfig.samples, "Replies of the judge to average.")
_TEMPERATURE = flags.DEFINE_float("judge_temperature", JudgeConfig.temperature, "Of the judge's sampling.")
_MAX_TOKENS = flags.DEFINE_integer("judge_max_tokens", JudgeConfig.max_tokens, "Longest reply of the judge.")
_CACHE = flags.DEFINE_string("judge_cache", JudgeConfig.cache, "Folder of the judge's replies, by content.")


def read_judge(url: str, model: str, key_variable: str = "") -> JudgeConfig:
    """Returns the judge that the flags describe."""
    return JudgeConfig(
        url=url,
        model=model,
        key_variable=key_variable,
        samples=_SAMPLES.value,
        temperature=_TEMPERATURE.value,
        max_tokens=_MAX_TOKENS.value,
        cache=_CACHE.value,
    )
