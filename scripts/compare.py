"""What the comparisons with FBGEMM share: our command, PyTorch with FBGEMM, medians and spreads."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIDEPOOL = str(ROOT / "target" / "release" / "tidepool")


def torch_with_fbgemm():
    """PyTorch on one thread. Debian's is built without FBGEMM and some thirty times slower: it is refused."""
    import torch

    torch.set_num_threads(1)
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        raise RuntimeError(f"torch {torch.__version__} of {sys.executable} has no fbgemm engine; see --help")
    return torch


def ours(command):
    """The object that `command` prints with --json, whatever it says meanwhile."""
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values):
    values = sorted(values)
    return {"median": values[len(values) // 2], "low": values[0], "high": values[-1]}


def shown(of):
    return f"{of['median']:.2f} ({of['low']:.2f} to {of['high']:.2f})"
