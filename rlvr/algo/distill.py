"""Distillation: from a teacher that is another policy, or the same one with privileged information in its prompt.

    method          who samples     what is minimised
    "on_policy"     the student     reward * (the RL's loss) + coef * D(student, teacher)
    "pi"            the teacher     alpha * L_teacher + (1 - alpha) * L_student (pi-Distill, 2602.04942)

On-policy distillation (GKD, 2306.13649; OPSD, 2602.04942 and 2601.18734) grades the student's own tokens. In pi-Distill
teacher and student are one network, of which the teacher alone samples; with y ~ teacher

    L_teacher = -E[R log teacher] + coef * KL(teacher || sg student)
    L_student = -E[student / sg teacher * R] + coef * KL(sg teacher || student)

where "R" stands for the objective's own surrogate and advantages.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from rlvr import errors
from rlvr.errors import ConfigError

METHODS = ("none", "on_policy", "pi")
FORMS = ("sampled", "full")
TEACHERS = ("live", "start", "ema", "checkpoint")


@dataclasses.dataclass
class DistillConfig:
    """What is distilled, and how.

    Attributes:
        method: see above; "none" is plain RL.
        form: of the divergence. "sampled" estimates it from the sampled tokens: on policy as an advantage,
            sg[log teacher - log student] of each token, whose expected gradient is that of KL(student || teacher); in
            pi-Distill as estimators of its two KLs whose gradients are theirs. "full" is exact at every token, over
            the whole vocabulary.
        teacher: whose parameters, of "on_policy": the policy's own as they are now ("live"), as they were at the
            start of the RL ("start"), their moving average ("ema"), or those of a "checkpoint". The teacher's side has
            no gradient.
        checkpoint: policy folder or workdir of the teacher; same vocabulary.
        hinted: whether the teacher's prompt has the task's hint.
        coef: of the divergence.
        reward: weight of the verifier's reward, of "on_policy"; 0 is pure distillation.
        beta: of JSD_beta, of "on_policy" and "full": 0 is KL(teacher || student), 1 is KL(student || teacher).
        alpha: of "pi": 1 trains the teacher alone, 0 the student alone.
        ema: share of the "ema" teacher that stays in an RL step.
    """

    method: str = "none"
    form: str = "sampled"
    teacher: str = "live"
    checkpoint: str = ""
    hinted: bool = True
    coef: float = 1.0
    reward: float = 1.0
    beta: float = 1.0
    alpha: float = 0.5
    ema: float = 0.99

    def validate(self) -> None:
        """Raises ConfigError naming the field that cannot work, or the fields that cannot go together."""
        errors.check_choice("distill.method", self.method, METHODS)
        errors.check_choice("distill.form", self.form, FORMS)
        errors.check_choice("distill.teacher", self.teacher, TEACHERS)
        for name in ("coef", "reward"):
            errors.check_between(f"distill.{name}", getattr(self, name), 0.0, 1e6)
        for name in ("beta", "alpha", "ema"):
            errors.check_between(f"distill.{name}", getattr(self, name), 0.0, 1.0)
        if (self.teacher == "checkpoint") != bool(self.checkpoint):
            raise ConfigError(
                f"distill.checkpoint={self.checkpoint!r} with distill.teacher={self.teacher!r}: the one names the "
                "folder, the other says that it is used; set both, or neither"
            )
        for name, (does, where) in self._uses().items():
            default = getattr(DistillConfig(), name)
            if not does and getattr(self, name) != default:
                raise ConfigError(f"distill.{name}={getattr(self, name)!r} means nothing here: it is {where}")
        if self.method == "on_policy":
            self._validate_on_policy()

    def _uses(self) -> dict[str, tuple[bool, str]]:
        """Returns, for each field that only some distillation looks at, whether this does, and which would."""
        any_at_all, on_policy = self.method != "none", self.method == "on_policy"
        of = "of distill.method="
        return {
            "form": (any_at_all, f"{of}'on_policy' and 'pi'"),
            "coef": (any_at_all, f"{of}'on_policy' and 'pi'"),
            "teacher": (on_policy, f"{of}'on_policy'; in 'pi' the policy with the hint is the teacher"),
            "hinted": (on_policy, f"{of}'on_policy'; in 'pi' the teacher is hinted"),
            "reward": (on_policy, f"{of}'on_policy'"),
            "beta": (on_policy and self.form == "full", f"{of}'on_policy' with distill.form='full'"),
            "alpha": (self.method == "pi", f"{of}'pi'"),
            "ema": (on_policy and self.teacher == "ema", f"{of}'on_policy' with distill.teacher='ema'"),
        }

    def _validate_on_policy(self) -> None:
        if not self.hinted and self.teacher != "checkpoint":
            raise ConfigError(
                f"distill.hinted=False with distill.teacher={self.teacher!r}: without the hint that is the policy "
                "itself, or its past, which objective.kl is for (accepted: distill.hinted=True, or "
                "distill.teacher='checkpoint')"
            )
        if not self.coef:
            raise ConfigError("distill.coef=0.0 with distill.method='on_policy': nothing would be distilled")

    def samples_teacher(self) -> bool:
        """Whether it is the hinted prompts that are sampled from."""
        return self.method == "pi"

    def shows_hints(self) -> bool:
        """Whether the tasks must have hints."""
        return self.method == "pi" or (self.method == "on_policy" and self.hinted)

    def compares(self) -> bool:
        """Whether the loss has a divergence over the whole vocabulary."""
        return self.method != "none" and self.form == "full" and self.coef > 0

    def needs_all_rows(self) -> bool:
        """Whether a row with advantage zero still has a gradient."""
        return self.compares() or (self.method == "pi" and self.coef > 0)


def jensen_shannon(log_p: jax.Array, log_q: jax.Array, beta: float) -> jax.Array:
    """JSD_beta = beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p (GKD, 2306.13649).

    At its ends that is 0 whatever p and q are, and near them beta or 1 - beta times a KL: so beta = 0 means
    KL(q || p) here, the forward KL, and beta = 1 KL(p || q), the reverse one.

    Args:
        log_p: [..., V] of the student.
        log_q: [..., V] of the teacher.

    Returns:
        [...], nats.
    """
    if beta == 0.0:
        return kl(log_q, log_p)
    if beta == 1.0:
        return kl(log_p, log_q)
    log_m = jnp.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta))
    return beta * kl(log_q, log_m) + (1.0 - beta) * kl(log_p, log_m)


def kl(log_a: jax.Array, log_b: jax.Array) -> jax.Array:
    """KL(a || b) of distributions [..., V], nats."""
    return jnp.sum(jnp.exp(log_a) * (log_a - log_b), axis=-1)


def divergence(config: DistillConfig, log_own: jax.Array, log_other: jax.Array, borrowed: Any) -> jax.Array:
    """Returns what a row's own distribution is pulled by at each token, [R, n]; see `DistillConfig`.

    Args:
        log_own: [R, n, V] of the row's own side.
        log_other: [R, n, V] of the teacher, or in pi-Distill of the other side; without gradient.
        borrowed: [R, n] bool whether the other side sampled the token; of pi-Distill.
    """
    if config.method == "on_policy":
        return jensen_shannon(log_own, log_other, config.beta)
    return jnp.where(borrowed, kl(log_other, log_own), kl(log_own, log_other))
