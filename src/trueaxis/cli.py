"""The command line: every command is one Python call, and --json prints what that call returns as one object."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trueaxis.progress import Progress, silent
from trueaxis.types import TrueaxisError

DESCRIPTION = """\
trueaxis compresses Hugging Face checkpoints to a size you choose.

  trueaxis compress llama llama-3bit --bits 3 --calibration text.txt
  trueaxis verify llama-3bit
  trueaxis unpack llama-3bit llama-plain

Bits are real: every byte of the weight files, their index and the growth of config.json,
times 8, over all parameters of the original.
"""
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Bytes of "900MB", "1.5GB", "123456"; MB = 10⁶ bytes, MiB = 2²⁰.

    Example:
        >>> parse_size("1.5MB")
        1500000
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 900MB, 1.5GB or 123456")
    return int(float(match[1]) * UNITS[match[2].upper()])


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    from trueaxis import __version__

    parser = argparse.ArgumentParser("trueaxis", description=DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=f"trueaxis {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_compress(commands)
    for name, run, text in (
        ("inspect", _inspect, "what a compressed directory holds and what its bytes are spent on"),
        ("verify", _verify, "check every byte and decode every tensor; exit 1 and say what is damaged"),
        ("unpack", _unpack, "compressed directory to an ordinary checkpoint that needs no trueaxis"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("out", metavar="OUT", help="directory written by 'trueaxis compress'")
        command.set_defaults(run=run)
    commands.choices["inspect"].add_argument(
        "--coders", action="store_true",
        help="also the same indices under Huffman and range coding, and their entropy; needs trueaxis[all]",
    )  # fmt: skip
    unpack = commands.choices["unpack"]
    unpack.add_argument("directory", metavar="DIR", help="directory to create")
    unpack.add_argument("--dtype", help="float32, float16 or bfloat16 (default: as in the original)")
    unpack.add_argument("--overwrite", action="store_true", help="replace DIR if it is not empty")
    _add_eval(commands)
    _add_sweep(commands)
    _add_demo(commands)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_compress(commands: Any) -> None:
    command = commands.add_parser(
        "compress",
        help="checkpoint to compressed directory, on target",
        description="Compress a checkpoint so that the whole file ends at most at the target and within 0.3 % below "
        "it, or is as small\nas a divergence from the original allows.",
    )
    _add_model(command)
    command.add_argument("out", metavar="OUT", help="directory to create; it appears whole or not at all")
    target = command.add_mutually_exclusive_group(required=True)
    target.add_argument("--bits", type=float, metavar="B", help="bits per parameter of the whole file")
    target.add_argument(
        "--size", type=parse_size, metavar="SIZE", help="bytes of the whole file: 900MB, 1.5GB (MB = 10^6)"
    )
    target.add_argument(
        "--max-kl", type=float, metavar="NATS", help="largest KL from the original per token of --evaluation"
    )
    _add_evaluation(command, required=False)
    _add_run(command)
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it is not empty")
    command.set_defaults(run=_compress)


def _add_sweep(commands: Any) -> None:
    text = "compress at several rates and evaluate each: a table, and a plot"
    command = commands.add_parser("sweep", help=text, description=text)
    _add_model(command)
    command.add_argument(
        "--bits", type=_rates, required=True, metavar="B,B,…", help="rates in bits per parameter: 1,1.5,2,3,4"
    )
    _add_evaluation(command, required=True)
    _add_run(command)
    command.add_argument("--output", metavar="DIR", help="keep the models, in DIR/1.5bits and so on")
    command.add_argument("--plot", metavar="FILE", help="draw KL over the rate in a .png or .svg file")
    command.set_defaults(run=_sweep)


def _rates(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of rates such as 1,1.5,2") from None


def _add_model(command: Any) -> None:
    command.add_argument(
        "model", metavar="MODEL", help="directory of a Hugging Face checkpoint (config.json, *.safetensors)"
    )


def _add_evaluation(command: Any, *, required: bool) -> None:
    command.add_argument(
        "--evaluation", nargs="+", default=[], required=required, metavar="FILE",
        help="text, or one .npy of token ids, to measure KL on; apart from the calibration text",
    )  # fmt: skip


def _add_run(command: Any) -> None:
    """Options of whatever compresses."""
    from trueaxis.recipe import NAMED

    command.add_argument(
        "--calibration",
        nargs="+",
        default=[],
        metavar="FILE",
        help="text, or token ids (.npy, integers [sequences, length]);\n"
        "without it and --statistics: text sampled from the model",
    )
    command.add_argument(
        "--statistics", metavar="FILE", help="reuse this statistics file; written if it does not exist"
    )
    command.add_argument("--recipe", default="default", metavar="NAME|FILE", help=f"{', '.join(NAMED)}; or a JSON file")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of every random choice (default 0)")
    command.add_argument(
        "--threads", type=int, metavar="N", help="workers (default: all processors); same bytes for any N"
    )
    command.add_argument("--device", default="cpu", metavar="D", help="torch device that runs models (default cpu)")


def _add_eval(commands: Any) -> None:
    text = "perplexity on text, and KL(reference || model) per token"
    command = commands.add_parser("eval", help=text, description=text)
    command.add_argument("directory", metavar="DIR", help="compressed directory or original checkpoint")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", default=[], metavar="FILE", help="text, read with DIR's tokenizer")
    source.add_argument("--tokens", metavar="FILE.npy", help="token ids, integers [sequences, length]")
    command.add_argument("--reference", metavar="DIR", help="model to compare with, usually the original")
    command.add_argument("--statistics", metavar="FILE", help="of the calibration: finds reused text more surely")
    command.add_argument("--allow-overlap", action="store_true", help="evaluate on calibration text, and say so")
    command.add_argument("--device", default="cpu", metavar="D", help="torch device (default cpu)")
    command.set_defaults(run=_eval)


def _add_demo(commands: Any) -> None:
    text = "compress the model that comes with trueaxis at several rates, beside two baselines"
    command = commands.add_parser("demo", help=text, description=text)
    command.add_argument("--bits", type=float, nargs="+", default=[6, 5, 4, 3], metavar="B", help="rates to show")
    command.add_argument("--sequences", type=int, default=24, metavar="N", help="to evaluate on, of 512 tokens")
    command.set_defaults(run=_demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 1 on bad input or a damaged file, 2 on wrong usage."""
    options = build_parser().parse_args(arguments)
    try:
        result, text = options.run(options)
    except TrueaxisError as error:
        if options.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"trueaxis: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trueaxis: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(json.dumps(result) if options.json else text)
    return 0


Result = tuple[dict[str, Any], str]


def _compress(options: argparse.Namespace) -> Result:
    # Not `from trueaxis.compress import compress`: that import would put the module where the function is looked up.
    import trueaxis

    with _progress_bar() as progress:
        report = trueaxis.compress(
            options.model, options.out, bits=options.bits, size=options.size, max_kl=options.max_kl,
            evaluation=options.evaluation, calibration=options.calibration, statistics=options.statistics,
            recipe=options.recipe, seed=options.seed, threads=options.threads,
            device=options.device, overwrite=options.overwrite, progress=progress,
        )  # fmt: skip
    result = asdict(report)
    worst = max(result["tensors"], key=lambda row: row["relative_distortion"])
    text = (
        f"{options.out}: {report.file_bytes:,} bytes, {report.bits_per_param:.4f} bits per parameter "
        f"({report.parameters:,} parameters; {report.copied_bytes:,} bytes copied beside)\n"
        f"calibrated on {report.calibration['tokens']:,} tokens ({report.calibration['source']})\n"
        f"largest relative distortion {worst['relative_distortion']:.4g} in {worst['name']}\n"
        f"{report.seconds:.1f} s, peak memory {report.peak_memory_bytes / 1e9:.2f} GB"
    )
    found = [] if report.evaluation is None else [f"KL {_kl(report.evaluation)}, at most {options.max_kl:g} asked for"]
    text = "\n".join([text, *found, *(f"note: {note}" for note in report.notes)])
    return result, text


def _kl(found: Any) -> str:
    """KL and its interval, of an evaluation or a row of a sweep."""
    interval = f", 95 % interval {found.kl_interval[0]:.5f} to {found.kl_interval[1]:.5f}" if found.kl_interval else ""
    return f"{found.kl_nats:.5f} nats per token{interval}"


def _sweep(options: argparse.Namespace) -> Result:
    import trueaxis

    with _progress_bar() as progress:
        found = trueaxis.sweep(
            options.model, bits=options.bits, evaluation=options.evaluation, calibration=options.calibration,
            statistics=options.statistics, recipe=options.recipe, output=options.output, plot=options.plot,
            seed=options.seed, threads=options.threads, device=options.device, progress=progress,
        )  # fmt: skip
    lines = [
        f"{options.model}: {found.tokens:,} tokens, prepared in {found.prepare_seconds:.1f} s",
        f"{'bits':>6} {'bits/param':>10} {'bytes':>15} {'perplexity':>11} {'seconds':>8}  KL",
    ]
    lines += [
        f"{row.bits:6g} {row.bits_per_param:10.4f} {row.file_bytes:15,} {row.perplexity:11.4f} {row.seconds:8.1f}  "
        f"{_kl(row)}"
        for row in found.rows
    ]
    return asdict(found), "\n".join(lines)


def _inspect(options: argparse.Namespace) -> Result:
    from trueaxis.coders import compare_coders
    from trueaxis.inspection import inspect

    found = inspect(options.out)
    lines = [
        f"{options.out}: {found['file_bytes']:,} bytes, {found['bits_per_param']:.4f} bits per parameter, "
        f"{found['parameters']:,} parameters, format version {found['format_version']}",
        "recipe: " + json.dumps(found["recipe"].get("stages")),
        "bytes: " + ", ".join(f"{purpose} {size:,}" for purpose, size in found["spent_bytes"].items()),
        f"{'tensor':50} {'shape':>16} {'storage':>10} {'bits/weight':>12} {'gap':>8} {'rel. distortion':>16}",
    ]
    rows = {row["name"]: row for row in (found["report"] or {}).get("tensors", [])}
    for tensor in found["tensors"]:
        row = rows.get(tensor["name"])
        figures = (
            f"{row['bits_per_weight']:12.4f} {row['gap_bits']:8.4f} {row['relative_distortion']:16.3e}" if row else ""
        )
        shape = "×".join(map(str, tensor["shape"]))
        lines.append(f"{tensor['name']:50} {shape:>16} {tensor['storage']:>10} {figures}")
    lines += _axes(found["report"] or {})
    if options.coders:
        found["coders"] = compare_coders(options.out)
        lines += _coders(found["coders"])
    return found, "\n".join(lines)


def _axes(report: dict[str, Any]) -> list[str]:
    """The axes of every space, and how learned ones came about."""
    spaces, learning = report.get("spaces") or [], report.get("learning")
    lines = ["axes, and the bits per weight that they are estimated to save:"] if spaces else []
    lines += [f"  {space['name']:70} {space['axes']:30} {space['estimated_saved_bits']:8.4f}" for space in spaces]
    if learning:
        before, after = learning["held_out"]["start"], learning["held_out"]["learned"]
        told = f"bits + λ·D per weight on statistics held out: {before:.4f} before, {after:.4f} after"
        lines.append(f"learned ({learning['proxy']}, {learning['distortion']}): {told}; {learning['kept']} kept")
    return lines


def _coders(found: dict[str, Any]) -> list[str]:
    """The same indices under every coder, in bits per quantized weight."""
    titles = {
        "trueaxis_bits": "this file's streams",
        "range_bits": "range coding (constriction)",
        "huffman_bits": "Huffman coding (constriction)",
        "entropy_bits": "Shannon entropy, not a size",
    }
    weights = max(found["weights"], 1)
    return [
        f"the same {found['weights']:,} indices with the same tables, bits per index:",
        *(f"  {title:30} {found[key] / weights:.4f}" for key, title in titles.items()),
    ]


def _verify(options: argparse.Namespace) -> Result:
    from trueaxis.runtime.load import verify

    found = verify(options.out)
    return found, f"{options.out}: {found['tensors']} tensors verified, every byte accounted for"


def _unpack(options: argparse.Namespace) -> Result:
    from trueaxis.runtime.load import unpack

    path = unpack(options.out, options.directory, options.dtype, overwrite=options.overwrite)
    return {"directory": str(path)}, f"{path}: ordinary checkpoint written"


def _eval(options: argparse.Namespace) -> Result:
    from trueaxis.evaluation import evaluate

    with _progress_bar() as progress:
        found = evaluate(
            options.directory, text=options.text, tokens=options.tokens, reference=options.reference,
            statistics=options.statistics, allow_overlap=options.allow_overlap, device=options.device,
            progress=progress,
        )  # fmt: skip
    lines = [
        f"{options.directory}: perplexity {found.perplexity:.4f}, {found.nats_per_token:.5f} nats per token, "
        f"{found.tokens:,} tokens"
    ]
    if found.kl_nats is not None:
        lines.append(f"KL from {options.reference}: {_kl(found)}")
        lines.append(f"same likeliest token: {found.top1_agreement:.2%}")
    if found.overlap is not None:
        lines.append(f"estimated overlap with the calibration text: {found.overlap:.1%}")
    return asdict(found), "\n".join(lines)


def _demo(options: argparse.Namespace) -> Result:
    from trueaxis.demo.run import demonstrate
    from trueaxis.demo.table import render

    with _progress_bar() as progress:
        found = demonstrate(options.bits, sequences=options.sequences, progress=progress)
    return asdict(found), "" if options.json else render(found, terminal=sys.stdout.isatty())


class _progress_bar:  # noqa: N801 - reads as a function at its one use
    """A bar with time left on a terminal, silence elsewhere."""

    def __enter__(self) -> Progress:
        self._bar = None
        if not sys.stderr.isatty():
            return silent
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description:12}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._bar.start()
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if self._bar is not None:
                task = (
                    tasks.setdefault(stage, self._bar.add_task(stage, total=total))
                    if stage not in tasks
                    else tasks[stage]
                )
                self._bar.update(task, completed=done, total=total)

        return show

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


if __name__ == "__main__":
    sys.exit(main())
