import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from rlvr import policy_folder
from rlvr.weights import importer

ROOT = Path(__file__).resolve().parents[2]


def launch(source, output):
    command = [sys.executable, "-m", "launch.import_weights", f"--source={source}", f"--output={output}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_writes_a_policy_folder_that_loads_again(tiny, tmp_path):
    source, output = tiny.write(), tmp_path / "out" / "policy"
    done = launch(source, output)
    assert done.returncode == 0, done.stderr
    assert "in 2 layers" in done.stdout and "stored as F32" in done.stdout and str(output) in done.stdout
    expected = importer.read_weights(source)
    _, params, tokenizer = policy_folder.load_policy(output)
    assert policy_folder.read_policy_config(output) == expected.config
    assert tokenizer.encode("the 12 foxes<|im_end|>") == expected.tokenizer.encode("the 12 foxes<|im_end|>")
    jax.tree.map(np.testing.assert_array_equal, params, expected.params)


def test_errors_are_one_line_and_leave_nothing(tiny, tmp_path):
    source, output = tiny.write(), tmp_path / "policy"
    source.write_bytes(source.read_bytes()[:-5000])
    failed = launch(source, output)
    assert failed.returncode == 1
    message = failed.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ") and "tiny.gguf: truncated or corrupt" in message
    assert "Traceback" not in failed.stderr
    assert sorted(tmp_path.iterdir()) == [source]
