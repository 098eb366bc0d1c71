"""What every entry point shares: flags with errors a user can act on, and errors as one clear line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from rlvr import errors
from rlvr.verifiers.process import WorkerStartError

# A worker that does not start is nearly always a verifier of the user's own that cannot be imported.
USER_ERRORS = (
    errors.ConfigError,
    errors.DataError,
    errors.WeightsError,
    errors.WorkdirError,
    errors.Setback,
    WorkerStartError,
)


# XLA TPU would take the gathering of a split matrix apart, multiply by one shard's slice at a time and add up the whole
# product each time: twice the time of the update of a dense policy (BUILD.md).
TPU_FLAG, TPU_VALUE = "--xla_jf_spmd_threshold_for_windowed_einsum_mib", 1_000_000


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """Runs `main(argv)`; a user's mistake ends as `error: ...` with exit status 1, without a traceback.

    Programs for TPUs are compiled with `TPU_FLAG`, unless LIBTPU_INIT_ARGS gives it another value. JAX adds to that
    variable too.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if TPU_FLAG not in given:
        os.environ["LIBTPU_INIT_ARGS"] = f"{given} {TPU_FLAG}={TPU_VALUE}".strip()

    def guarded(argv: Sequence[str]) -> Any:
        logging.getLogger("rlvr").setLevel(logging.INFO)
        absl_logging.set_verbosity(absl_logging.WARNING)
        try:
            return main(argv)
        except USER_ERRORS as error:
            show_error(error)
            return 1

    app.run(guarded, flags_parser=parse_flags)


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises UsageError where there is more than flags: `temperature=0` without its dashes is no flag."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: flags begin with --")


def show_error(error: Exception) -> None:
    """Prints a user's mistake as one line, anything else with its traceback."""
    if not isinstance(error, USER_ERRORS):
        traceback.print_exception(error)
    else:
        print(f"error: {error}", file=sys.stderr, flush=True)


def define_config() -> flags.FlagHolder:
    """Declares --config=FILE and its overrides --config.a.b=value."""
    return config_flags.DEFINE_config_file("config", None, "Config file: a Python file with get_config().")


def define_workdir(text: str) -> flags.FlagHolder:
    """Declares --workdir=DIR, a folder of this machine; `text` says whose."""
    holder = flags.DEFINE_string("workdir", None, text, required=True)
    flags.register_validator(holder, _check_folder)
    return holder


def _check_folder(folder: str | None) -> bool:
    """Raises ValidationError for what is no path of this machine: it would become a folder of that name here."""
    if folder and (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", folder)):
        raise flags.ValidationError(
            f"{scheme[0]}/ is no folder of this machine: mount the bucket (gcsfuse, s3fs) and give the folder where it "
            "is mounted; `python -m launch.tpu` takes gs:// and mounts it by itself"
        )
    return True


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; an unknown or mistyped field of the config is named, with the nearest valid one."""
    try:
        with _explained(argv):
            rest = flags.FLAGS(list(argv))
            if "config" in flags.FLAGS:
                getattr(flags.FLAGS["config"].value, "name", None)  # a file that could not be loaded fails only here
            return rest
    except errors.ConfigError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def parse_config(file: str, arguments: Sequence[str]) -> Any:
    """Returns the config that --config=FILE and the given overrides (`--config.a.b=value`) stand for.

    Raises:
        ConfigError: the file cannot be loaded, or an override does not fit.
    """
    argv = ["", f"--config={file}", *arguments]
    with _explained(argv):
        values = flags.FlagValues()
        flag = config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
        values(argv)
        getattr(flag.value, "name", None)
        return flag.value


@contextlib.contextmanager
def _explained(argv: Sequence[str]) -> Iterator[None]:
    """Turns what the parsing of flags raises into a ConfigError that a user can act on."""
    try:
        yield
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise errors.ConfigError(_explain(argv, error)) from error
    except flags.Error as error:
        message = str(error)
        if "Traceback" in message:  # of get_config(), ending in "package.ErrorName: what is wrong"
            message = "--config: " + message.strip().splitlines()[-1].partition(": ")[2]
        raise errors.ConfigError(message) from error
    except OSError as error:
        raise errors.ConfigError(f"--config: {str(error).splitlines()[-1].strip()}") from error


def _explain(argv: Sequence[str], error: Exception) -> str:
    """Finds the override that no field of the config answers to."""
    files = [a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)]
    if not files:
        return f"{error} (is --config=FILE missing?)"
    # The library reads the overrides from the whole command line: here it is to see none.
    flag = config_flags.DEFINE_config_file(
        "config", files[0], "", flag_values=(values := flags.FlagValues()), sys_argv=[argv[0]]
    )
    values([argv[0]])
    names = list(_field_names(flag.value, ""))
    for argument in argv[1:]:
        match = re.match(r"--?config\.([^=]+)", argument)
        if match and re.sub(r"\[\d+\]", "", match[1]) not in names:
            near = difflib.get_close_matches(match[1], names, n=1, cutoff=0.0)
            hint = f"; did you mean --config.{near[0]}?" if near else ""
            return f"the config has no field {match[1]!r}{hint}"
    return str(error)


def _field_names(config: Any, prefix: str) -> Any:
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        yield name
        if dataclasses.is_dataclass(value):
            yield from _field_names(value, name + ".")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            yield from _field_names(value[0], name + ".")


def print_result(result: dict[str, Any]) -> None:
    """Prints the machine-readable last line."""
    print("RESULT " + json.dumps(result), flush=True)


def shorten(value: Any) -> Any:
    """Returns a result with its floats to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: shorten(inner) for name, inner in value.items()}
    return [shorten(inner) for inner in value] if isinstance(value, list) else value
