"""The command line: every command is one Python call, and --json prints what that call returns as one object."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trueaxis.arguments import build_parser
from trueaxis.progress import Progress, silent
from trueaxis.types import TrueaxisError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 1 on bad input or a damaged file, 2 on wrong usage, 130 when interrupted,
    141 when nobody reads what it prints."""
    try:
        code = _finish(build_parser().parse_args(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("trueaxis: interrupted; nothing was written in part", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _finish(options: argparse.Namespace) -> int:
    try:
        if getattr(options, "device", "cpu") != "cpu":
            from trueaxis.processor import torch_device

            options.device = str(torch_device(options.device))
        result, text = RUNS[options.command](options)
    except TrueaxisError as error:
        if options.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"trueaxis: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if options.json else text)
    return 0


Result = tuple[dict[str, Any], str]


def _compress(options: argparse.Namespace) -> Result:
    # Not `from trueaxis.compress import compress`: that import would put the module where the function is looked up.
    import trueaxis

    if options.lossless:
        return _compress_lossless(options)
    if options.base is not None:
        raise TrueaxisError("--base goes with --lossless")
    if options.dry_run:
        return _forecast(options)
    with _progress_bar() as progress:
        report = trueaxis.compress(
            options.model, options.out, bits=options.bits, size=options.size, max_kl=options.max_kl,
            evaluation=options.evaluation, calibration=options.calibration, statistics=options.statistics,
            recipe=_recipe(options), seed=options.seed, threads=options.threads,
            device=options.device, overwrite=options.overwrite, resume=options.resume, memory=options.memory,
            engine=options.engine, ray_address=options.ray_address, progress=progress,
        )  # fmt: skip
    result = asdict(report)
    worst = max(result["tensors"], key=lambda row: row["relative_distortion"])
    found = [] if report.evaluation is None else [f"KL {_kl(report.evaluation)}, at most {options.max_kl:g} asked for"]
    return result, _told(options.out, report, [
        f"calibrated on {report.calibration['tokens']:,} tokens ({report.calibration['source']})",
        f"largest relative distortion {worst['relative_distortion']:.4g} in {worst['name']}",
    ], found)  # fmt: skip


def _forecast(options: argparse.Namespace) -> Result:
    import trueaxis

    found = trueaxis.forecast(
        options.model, bits=options.bits, size=options.size, calibration=options.calibration, recipe=_recipe(options),
        threads=options.threads, memory=options.memory,
    )  # fmt: skip
    return asdict(found), found.text


def _recipe(options: argparse.Namespace) -> Any:
    """The recipe asked for, with the tuning and the strips asked for."""
    from trueaxis.recipe import tuned, with_strips

    chosen = tuned(options.recipe) if options.tune else options.recipe
    return chosen if options.strips is None else with_strips(chosen, options.strips)


def _told(out: str, report: Any, quality: Sequence[str], after: Sequence[str] = ()) -> str:
    """Text of a file that was made: its size, what is in it, what it took, what else was found, and notes."""
    return "\n".join([
        f"{out}: {report.file_bytes:,} bytes, {report.bits_per_param:.4f} bits per parameter "
        f"({report.parameters:,} parameters; {report.copied_bytes:,} bytes copied beside)",
        *quality,
        f"{report.seconds:.1f} s, peak memory {report.peak_memory_bytes / 1e9:.2f} GB",
        *after,
        *(f"note: {note}" for note in report.notes),
    ])  # fmt: skip


def _compress_lossless(options: argparse.Namespace) -> Result:
    import trueaxis

    if options.resume or options.tune or options.dry_run:
        raise TrueaxisError(
            "--lossless has nothing to resume, to tune or to foretell: leave out --resume, --tune and --dry-run"
        )
    if options.calibration or options.evaluation or options.statistics:
        raise TrueaxisError("--lossless needs no text: leave out --calibration, --evaluation and --statistics")
    with _progress_bar() as progress:
        report = trueaxis.compress_lossless(
            options.model, options.out, base=options.base, threads=options.threads, overwrite=options.overwrite,
            progress=progress,
        )  # fmt: skip
    quality = [f"every bit of {len(report.tensors)} tensors decoded and compared"]
    return asdict(report), _told(options.out, report, quality)


def _compress_family(options: argparse.Namespace) -> Result:
    import trueaxis

    with _progress_bar() as progress:
        found = trueaxis.compress_family(
            options.base, options.members, options.out, bits_delta=options.bits_delta, calibration=options.calibration,
            recipe=options.recipe, seed=options.seed, threads=options.threads, device=options.device,
            progress=progress,
        )  # fmt: skip
    lines = [] if found.base is None else [f"{options.out}: base of {found.base.file_bytes:,} bytes, every bit of it"]
    lines += [f"a direction that members share: {size:,} bytes" for size in found.directions]
    lines += [
        f"{name}: {report.file_bytes:,} bytes, {report.bits_per_param:.4f} bits per parameter, {report.seconds:.1f} s"
        for name, report in found.members.items()
    ]
    lines += [f"note: {name}: {note}" for name, report in found.members.items() for note in report.notes]
    return asdict(found), "\n".join(lines)


def _kl(found: Any) -> str:
    """KL and its interval, of an evaluation or a row of a sweep."""
    interval = f", 95 % interval {found.kl_interval[0]:.5f} to {found.kl_interval[1]:.5f}" if found.kl_interval else ""
    return f"{max(found.kl_nats, 0.0):.5f} nats per token{interval}"  # sums in floating point may end below 0


def _sweep(options: argparse.Namespace) -> Result:
    import trueaxis

    with _progress_bar() as progress:
        found = trueaxis.sweep(
            options.model, bits=options.bits, evaluation=options.evaluation, calibration=options.calibration,
            statistics=options.statistics, recipe=_recipe(options), output=options.output, plot=options.plot,
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


def _compare(options: argparse.Namespace) -> Result:
    from trueaxis.comparison.run import compare
    from trueaxis.comparison.table import render
    from trueaxis.plot import check_plot, draw_curves

    if options.plot is not None:
        check_plot(options.plot, options.model)
    with _progress_bar() as progress:
        found = compare(
            options.model, bits=options.bits, text=options.text, tokens=options.tokens, recipes=options.recipes,
            peers=options.peers, calibration=options.calibration, statistics=options.statistics, seed=options.seed,
            threads=options.threads, device=options.device, progress=progress,
        )  # fmt: skip
    if options.plot is not None:
        draw_curves(found, options.plot)
    return asdict(found), render(found)


def _inspect(options: argparse.Namespace) -> Result:
    from trueaxis.coders import compare_coders
    from trueaxis.inspection import inspect, render
    from trueaxis.plot import check_plot, draw_inspection

    if options.plot is not None:
        check_plot(options.plot, options.out)
    found = inspect(options.out)
    if options.plot is not None or options.coders:
        if "members" in found:
            raise TrueaxisError(f"{options.out}: --plot and --coders take a part of a family, such as its base")
        if options.plot is not None:
            draw_inspection(found, options.plot)
        if options.coders:
            found["coders"] = compare_coders(options.out)
    return found, render(options.out, found)


def _verify(options: argparse.Namespace) -> Result:
    from trueaxis.runtime.load import verify

    found = verify(options.out, options.base)
    return found, f"{options.out}: {found['tensors']} tensors verified, every byte accounted for"


def _unpack(options: argparse.Namespace) -> Result:
    from trueaxis.runtime.load import unpack

    path = unpack(
        options.out,
        options.directory,
        options.dtype,
        overwrite=options.overwrite,
        base=options.base,
        member=options.member,
    )
    return {"directory": str(path)}, f"{path}: ordinary checkpoint written"


def _export(options: argparse.Namespace) -> Result:
    import trueaxis

    with _progress_bar() as progress:
        found = trueaxis.export(
            options.out, options.directory, options.format, type=options.type, group=options.group,
            calibration=options.calibration, statistics=options.statistics, overwrite=options.overwrite,
            base=options.base, member=options.member, seed=options.seed, threads=options.threads,
            device=options.device, progress=progress,
        )  # fmt: skip
    text = f"{found.directory}: {found.file_bytes:,} bytes, {found.bits_per_param:.4f} bits per parameter"
    return asdict(found), "\n".join([text, *(f"note: {note}" for note in found.notes)])


def _eval(options: argparse.Namespace) -> Result:
    from trueaxis.evaluation import evaluate

    with _progress_bar() as progress:
        found = evaluate(
            options.directory, text=options.text, tokens=options.tokens, reference=options.reference,
            base=options.base, statistics=options.statistics, allow_overlap=options.allow_overlap,
            device=options.device, memory=options.memory, progress=progress,
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


def _analyze(options: argparse.Namespace) -> Result:
    import trueaxis

    with _progress_bar() as progress:
        found = trueaxis.analyze(options.model, text=options.text, seed=options.seed, progress=progress)
    lines = [
        f"{found.model}: {len(found.matrices)} matrices, {found.tokens:,} tokens ({found.source}), "
        f"{found.seconds:.0f} s; aligned axes: {found.aligned}"
    ]
    for claim in found.claims:
        number = "-" if claim.value is None else f"{claim.value:.3g}"
        bounds = f"({claim.interval[0]:.3g} to {claim.interval[1]:.3g})" if claim.interval else f"({claim.reason})"
        lines.append(f"{claim.verdict:15} {claim.name:26} {number} {bounds} {claim.unit}")
    return asdict(found), "\n".join(lines)


def _report(options: argparse.Namespace) -> Result:
    import trueaxis

    path = trueaxis.report(
        options.out, options.output, analysis=options.analysis, comparison=options.comparison,
        evaluation=options.evaluation,
    )  # fmt: skip
    return {"page": str(path)}, f"{path}: {path.stat().st_size:,} bytes, to be opened in any browser"


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


RUNS = {
    "compress": _compress,
    "compress-family": _compress_family,
    "sweep": _sweep,
    "compare": _compare,
    "inspect": _inspect,
    "verify": _verify,
    "unpack": _unpack,
    "export": _export,
    "eval": _eval,
    "analyze": _analyze,
    "report": _report,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
