#!/usr/bin/env python3
"""Quantizing rows to INT4: tidepool beside FBGEMM's min-max rule and PyTorch's greedy search.

min_max stands beside FBGEMM's rule in both its forms, whose bytes must be ours: PyTorch's
embedding_bag_4bit_prepack(w), which calls FBGEMM's AVX2 code, and, where fbgemm_gpu is installed, the operator
FloatToFusedNBitRowwiseQuantizedSBHalf of that name, which is a plain loop. optimized stands beside the greedy search of embedding_bag_4bit_prepack(w, True), which is slow and
so is timed on the first rows of each file only; errors are of all rows. One thread each, in turn, by the CPU time
of the thread; medians with their spread. Rows are drawn (Gaussian, uniform, Laplace) at each dimension, or are
those of NPY files: `tidepool demo --f32-store` and `tidepool table export` make some of a trained model.

Exits with 3 when bytes differ or `optimized` has the larger error. The last line of stdout is one JSON object.
Needs a Python whose torch has the fbgemm engine: `pip install torch==2.14.1 numpy`, and for the
operator `pip install --no-deps fbgemm-gpu-cpu==1.9.0`. Usage:
  PYTHON scripts/compare-quantizers.py [--dims 32,64,128] [--rows 200000] [--rounds 7] [--seconds 0.5]
      [--npy FILE ...] [--seed 1] [--tidepool target/release/tidepool]
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import compare

SLICE_ROWS = 4096  # What FBGEMM writes at once then stays in the cache.
KINDS = ["gaussian", "uniform", "laplace"]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dims", default="32,64,128", help="of drawn rows")
    parser.add_argument("--rows", type=int, default=200_000, help="of each file of drawn rows")
    parser.add_argument("--greedy-rows", type=int, default=10_000, help="on which the greedy search is timed")
    parser.add_argument("--npy", nargs="*", default=[], help="files of f32 rows, instead of drawn ones")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one measurement")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tidepool", default=compare.TIDEPOOL)
    return parser.parse_args()


def drawn(args, folder):
    """Files of drawn rows, by name."""
    import numpy

    files = {}
    for dim in [int(dim) for dim in args.dims.split(",")]:
        for kind in KINDS:
            random = numpy.random.default_rng([args.seed, dim, KINDS.index(kind)])
            draw = {"gaussian": random.standard_normal, "uniform": random.random, "laplace": random.laplace}[kind]
            files[f"{kind} dim {dim}"] = folder / f"{kind}-{dim}.npy"
            numpy.save(files[f"{kind} dim {dim}"], draw(size=(args.rows, dim)).astype(numpy.float32))
    return files


def fbgemm(torch):
    """FBGEMM's min-max quantizers, by name."""
    ways = {"fbgemm_prepack": torch.ops.quantized.embedding_bag_4bit_prepack}
    try:
        import fbgemm_gpu  # noqa: F401

        ways["fbgemm_operator"] = lambda rows: torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(rows, 4)
    except ImportError:
        pass
    return ways


def rate(rows, quantize, seconds):
    """Rows per second of CPU time, all at once or in slices, whichever is faster."""
    rates = []
    for size in {len(rows), min(SLICE_ROWS, len(rows))}:
        slices, done, took = rows.split(size), 0, 0.0
        while took < seconds:
            began = time.thread_time()
            for part in slices:
                quantize(part)
            took += time.thread_time() - began
            done += len(rows)
        rates.append(done / took)
    return max(rates)


def mean_squared_error(torch, rows, stored):
    """Of stored rows, decoded here."""
    codes = stored[:, :-4]
    codes = torch.stack([codes % 16, codes // 16], dim=2).flatten(1)[:, : rows.shape[1]].double()
    ends = stored[:, -4:].contiguous().view(torch.float16).double()
    return (codes * ends[:, :1] + ends[:, 1:] - rows.double()).pow(2).mean().item()


def compared(args, torch, name, file, out):
    import numpy

    rows = torch.from_numpy(numpy.load(file))
    prepack = torch.ops.quantized.embedding_bag_4bit_prepack
    few = rows[: args.greedy_rows]
    command = [args.tidepool, "bench", "quantize", "--from", str(file), "--seconds"]
    ways, rounds = fbgemm(torch), []
    for _ in range(args.rounds):
        reports = {q: compare.ours([*command, str(args.seconds), "--quantizer", q]) for q in ["min_max", "optimized"]}
        rounds.append(
            {q: report["rows_per_second_on_cpu"]["median"] for q, report in reports.items()}
            | {way: rate(rows, quantize, args.seconds / 4) for way, quantize in ways.items()}
            | {"greedy": rate(few, lambda rows: prepack(rows, True), args.seconds / 4)}
        )
    stored = {}
    for quantizer in reports:
        compare.ours([*command, "0", "--quantizer", quantizer, "--out", str(out)])
        stored[quantizer] = torch.from_numpy(numpy.fromfile(out, dtype=numpy.uint8)).view(len(rows), -1)
    errors = {quantizer: mean_squared_error(torch, rows, stored[quantizer]) for quantizer in stored}
    errors["greedy"] = mean_squared_error(torch, rows, prepack(rows, True))
    for quantizer, report in reports.items():
        # Two decoders that know nothing of each other.
        assert abs(report["mean_squared_error"] - errors[quantizer]) <= 1e-4 * errors[quantizer], (name, quantizer)
    result = {
        "rows": len(rows),
        "dim": rows.shape[1],
        "same_bytes_as_fbgemm": all(torch.equal(quantize(rows), stored["min_max"]) for quantize in ways.values()),
        "mean_squared_error": errors,
        "optimized_error_to_greedy": errors["optimized"] / errors["greedy"] if errors["greedy"] else None,
        "rows_per_second": {key: compare.spread(found[key] for found in rounds) for key in rounds[0]},
        **{f"min_max_to_{way}": compare.spread(found["min_max"] / found[way] for found in rounds) for way in ways},
        "optimized_to_greedy": compare.spread(found["optimized"] / found["greedy"] for found in rounds),
    }
    million = {key: f"{of['median'] / 1e6:.3g}" for key, of in result["rows_per_second"].items()}
    shares = " ".join(f"{key} {errors[key] / errors['min_max']:.4f}" for key in ["optimized", "greedy"])
    print(
        f"{name}: {len(rows)} rows; M rows/s {million}; bytes {'same' if result['same_bytes_as_fbgemm'] else 'DIFFER'}; "
        + "".join(f"min_max / {way} {compare.shown(result[f'min_max_to_{way}'])}; " for way in ways)
        + f"optimized / greedy {compare.shown(result['optimized_to_greedy'])}; of min_max's squared error: {shares}",
        file=sys.stderr,
    )
    return result, report["machine"], report["isa"]


def main():
    args = arguments()
    try:
        torch = compare.torch_with_fbgemm()
    except (ImportError, RuntimeError) as error:
        sys.exit(f"compare-quantizers: {error}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        files = {pathlib.Path(file).stem: file for file in args.npy} or drawn(args, folder)
        for name, file in files.items():
            results[name], machine, isa = compared(args, torch, name, file, folder / "stored")
    kept = all(
        r["same_bytes_as_fbgemm"] and r["mean_squared_error"]["optimized"] <= r["mean_squared_error"]["greedy"]
        for r in results.values()
    )
    result = {"schema_version": 1, "machine": machine, "seed": args.seed, "torch": torch.__version__, "isa": isa}
    print(json.dumps(result | {"rounds": args.rounds, "kept": kept, "rows": results}))
    sys.exit(0 if kept else 3)


if __name__ == "__main__":
    main()
