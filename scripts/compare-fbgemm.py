#!/usr/bin/env python3
"""Pooling of INT4 rows: tidepool beside PyTorch's embedding_bag_4bit_rowwise_offsets, which is FBGEMM.

Both do the same work on tables of the same shape, one thread each, in turn: ours, FBGEMM with its tensor on
4 KiB pages (as it comes), FBGEMM on 2 MiB pages (THP_MEM_ALLOC_ENABLE=1), and again. Each round gives one ratio
per page size; printed are medians with their spread. Time is that of the thread on its core, on both sides, so
that other processes cost nobody his turn. The last line of stdout is one JSON object.

Needs a Python whose torch has the fbgemm engine. Debian's python3-torch has none (its 4-bit operator is a plain
loop, some thirty times slower), so it is refused: `pip install torch==2.14.1 numpy` into an environment of its
own (5.5 GB), and run this script with that Python. Usage:
  PYTHON scripts/compare-fbgemm.py --rows 20000000 [--dim 64] [--bag 20] [--skew uniform|zipf:1.05]
      [--keys dense|hashed] [--residency auto|mapped|locked|copied] [--rounds 7] [--seconds 3] [--dir DIR] [--tidepool target/release/tidepool]
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import compare

BATCH_IDS = 20_000  # as tidepool bench kernel
PASS_IDS = 1_300_000  # rows of a pass fill a cache of 32 MiB four times


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--bag", type=int, default=20)
    parser.add_argument("--skew", default="uniform")
    parser.add_argument("--keys", default="dense")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", default=str(compare.ROOT / "data" / "bench"))
    parser.add_argument("--tidepool", default=compare.TIDEPOOL)
    parser.add_argument("--residency", default="auto", help="of ours: auto, mapped, locked or copied")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def huge_page_bytes():
    smaps = pathlib.Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"^AnonHugePages:\s+(\d+) kB", smaps, re.M).group(1)) << 10


class Ids:
    """Row numbers that nobody asked for before, uniform or Zipf; likely rows are scattered over the table."""

    def __init__(self, torch, args):
        self.torch, self.rows = torch, args.rows
        self.generator = torch.Generator().manual_seed(args.seed)
        self.cumulative = None
        if args.skew != "uniform":
            exponent = float(args.skew.removeprefix("zipf:"))
            self.cumulative = torch.arange(1, args.rows + 1, dtype=torch.float64)
            self.cumulative.pow_(-exponent)
            torch.cumsum(self.cumulative, 0, out=self.cumulative)

    def draw(self, count):
        torch = self.torch
        if self.cumulative is None:
            ids = torch.randint(0, self.rows, (count,), generator=self.generator)
        else:
            at = torch.rand(count, generator=self.generator, dtype=torch.float64) * self.cumulative[-1]
            ranks = torch.searchsorted(self.cumulative, at).clamp_(max=self.rows - 1)
            # A prime larger than any table here: a bijection of the row numbers.
            ids = ranks * 2_147_483_647 % self.rows
        return ids.to(torch.int32)


def worker(args):
    """Times passes for as many seconds as each line of stdin says, and answers a line each."""
    try:
        torch = compare.torch_with_fbgemm()
    except (ImportError, RuntimeError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    torch.manual_seed(args.seed)
    codes = args.dim // 2
    table = torch.empty((args.rows, codes + 4), dtype=torch.uint8)
    for first in range(0, args.rows, 1 << 20):
        table[first : first + (1 << 20)].random_(0, 256)
    # Scale 1/16 and bias -1/2, as f16.
    table[:, codes:] = torch.tensor([0x00, 0x2C, 0x00, 0xB8], dtype=torch.uint8)
    pool = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets
    bags = max(BATCH_IDS // args.bag, 1)
    batch = bags * args.bag
    # With include_last_offset, FBGEMM takes the offsets as they are.
    offsets = torch.arange(0, batch + 1, args.bag, dtype=torch.int32)
    ids = Ids(torch, args)
    ready = {"torch": torch.__version__, "huge_page_bytes": huge_page_bytes(), "table_bytes": table.numel()}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        rates, until = [], time.monotonic() + float(line)
        while time.monotonic() < until or not rates:
            batches = ids.draw(-(-PASS_IDS // batch) * batch).split(batch)
            began = time.thread_time()
            for indices in batches:
                pool(table, indices, offsets, False, 0, False, None, None, True)
            rates.append(len(batches) * batch / (time.thread_time() - began))
        rates.sort()
        print(json.dumps({"rows_per_second": rates[len(rates) // 2]}), flush=True)


class Fbgemm:
    """A process that holds FBGEMM's table on pages of one size."""

    def __init__(self, args, huge):
        environment = dict(os.environ)
        environment.pop("THP_MEM_ALLOC_ENABLE", None)
        if huge:
            environment["THP_MEM_ALLOC_ENABLE"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self.answer()
        if "error" in self.ready:
            sys.exit(f"compare-fbgemm: {self.ready['error']}")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"compare-fbgemm: the FBGEMM process ended with {self.process.wait()}")
        return json.loads(line)

    def run(self, seconds):
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self.answer()["rows_per_second"]


def ours(args):
    command = [args.tidepool, "bench", "kernel", "--format", "int4", "--threads", "1"]
    for name in ["rows", "dim", "bag", "skew", "keys", "seconds", "dir", "seed", "residency"]:
        command += [f"--{name}", str(getattr(args, name))]
    return compare.ours(command)


def main():
    args = arguments()
    if args.worker:
        return worker(args)
    small, huge = Fbgemm(args, huge=False), Fbgemm(args, huge=True)
    ours(args)  # Builds the table, and brings it into memory.
    rounds = []
    for number in range(args.rounds):
        found = {"report": ours(args), "small": small.run(args.seconds), "huge": huge.run(args.seconds)}
        found["ours"] = found["report"]["rows_per_second_on_cpu"]["median"]
        rounds.append(found)
        rates = ", ".join(f"{name} {found[name] / 1e6:.1f}" for name in ["ours", "small", "huge"])
        print(f"round {number + 1} of {args.rounds}: {rates} M rows/s", file=sys.stderr)
    report = rounds[-1]["report"]
    result = {
        "schema_version": 1,
        "machine": report["machine"],
        "seed": args.seed,
        "torch": small.ready["torch"],
        **{name: report[name] for name in ["rows", "dim", "bag", "skew", "keys", "residency", "isa", "huge_page_bytes"]},
        "fbgemm_small_pages_huge_page_bytes": small.ready["huge_page_bytes"],
        "fbgemm_huge_pages_huge_page_bytes": huge.ready["huge_page_bytes"],
        "rows_per_second": compare.spread(found["ours"] for found in rounds),
        "fbgemm_small_pages_rows_per_second": compare.spread(found["small"] for found in rounds),
        "fbgemm_huge_pages_rows_per_second": compare.spread(found["huge"] for found in rounds),
        "ratio_to_fbgemm_small_pages": compare.spread(found["ours"] / found["small"] for found in rounds),
        "ratio_to_fbgemm_huge_pages": compare.spread(found["ours"] / found["huge"] for found in rounds),
        "ratio_to_gather_limit": compare.spread(found["report"]["ratio_to_gather_limit_on_cpu"]["median"] for found in rounds),
        "wrong_answers": sum(found["report"]["wrong_answers"] for found in rounds),
    }
    for name in ["ratio_to_fbgemm_small_pages", "ratio_to_fbgemm_huge_pages", "ratio_to_gather_limit"]:
        print(f"{name}: {compare.shown(result[name])}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
