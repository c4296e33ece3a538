"""Arguments: every command's options, and the help that reads like a manual.

sys.argv ─▶ build_parser ─▶ options, whose `command` the command line runs
"""

from __future__ import annotations

import argparse
import re
from typing import Any

from trueaxis.engine import ENGINES

DESCRIPTION = """\
trueaxis compresses Hugging Face checkpoints to a size you choose.

  trueaxis compress llama llama-3bit --bits 3 --calibration text.txt
  trueaxis verify llama-3bit
  trueaxis unpack llama-3bit llama-plain

Bits are real: every byte of the weight files, their index and the growth of config.json,
times 8, over all parameters of the original.
"""
SHARED_AXES = """\
Axes are judged once, at the mean of the rates: 'compress' at one of them
gives a slightly other file, judged at that rate alone."""
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
    _add_family(commands)
    for name, text in (
        ("inspect", "what a compressed directory holds and what its bytes are spent on"),
        ("verify", "check every byte and decode every tensor; exit 1 and say what is damaged"),
        ("unpack", "compressed directory to an ordinary checkpoint that needs no trueaxis"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("out", metavar="OUT", help="directory written by 'trueaxis compress'")
    commands.choices["inspect"].add_argument(
        "--coders", action="store_true",
        help="also the same indices under Huffman and range coding, and their entropy; needs trueaxis[all]",
    )  # fmt: skip
    commands.choices["inspect"].add_argument(
        "--plot", metavar="FILE", help="draw bits over depth, and bytes by purpose, in a .png or .svg file"
    )
    unpack = commands.choices["unpack"]
    unpack.add_argument("directory", metavar="DIR", help="directory to create")
    unpack.add_argument("--dtype", help="float32, float16 or bfloat16 (default: as in the original)")
    unpack.add_argument("--member", metavar="NAME", help="which one, where OUT is the root of a family")
    unpack.add_argument("--overwrite", action="store_true", help="replace DIR if it is not empty")
    for name in ("verify", "unpack"):
        _add_base(commands.choices[name], "the base that OUT goes beside, if it does not lie next to OUT")
    _add_export(commands)
    _add_eval(commands)
    _add_sweep(commands)
    _add_analyze(commands)
    _add_compare(commands)
    _add_report(commands)
    _add_demo(commands)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_compress(commands: Any) -> None:
    command = commands.add_parser(
        "compress",
        help="checkpoint to compressed directory, on target",
        description="Compress a checkpoint so that the whole file ends at most at the target and within 0.3 % below "
        "it, or is as small\nas a divergence from the original allows, or as small as it gets with every bit kept.",
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
    target.add_argument("--lossless", action="store_true", help="every bit of every tensor; needs no calibration")
    _add_base(command, "with --lossless: store what differs from this checkpoint, which reading needs again")
    _add_evaluation(command, required=False)
    _add_run(command)
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it is not empty")
    command.add_argument(
        "--resume", action="store_true",
        help="keep a journal beside OUT and go on from one that is there;\nverify an OUT that is finished",
    )  # fmt: skip
    _add_memory(command)
    command.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="where text is read, matrices rounded (default local); same bytes",
    )
    command.add_argument("--ray-address", metavar="HOST:PORT", help="of a Ray cluster (default: Ray on this machine)")
    command.add_argument(
        "--dry-run", action="store_true",
        help="say what memory, disk and time it would take, and the smallest size\nthat can be asked for; nothing is "
        "written",
    )  # fmt: skip


def _add_family(commands: Any) -> None:
    from trueaxis.recipe import NAMED

    command = commands.add_parser(
        "compress-family", help="fine-tunes of one checkpoint, each as what it adds to it",
        description="Compress fine-tunes of one checkpoint: the base bit for bit, of each member what it adds at a "
        "rate of its own.\nWith an OUT that is a family of the same base, members are added; no other is touched.",
    )  # fmt: skip
    command.add_argument("base", metavar="BASE", help="directory of the checkpoint that all started from")
    command.add_argument("members", nargs="+", metavar="MEMBER", help="directory of a fine-tune, or of a LoRA adapter")
    command.add_argument("out", metavar="OUT", help="root of the family")
    command.add_argument(
        "--bits-delta", type=float, required=True, metavar="B", help="bits per parameter of each member's files"
    )
    own = ", ".join(name for name, one in NAMED.items() if type(one.align).__name__ == "Identity")
    command.add_argument("--recipe", default="identity", metavar="NAME|FILE", help=f"{own}; or a JSON file")
    _add_calibration(command, statistics=False)


def _add_memory(command: Any, place: str = "beside OUT") -> None:
    command.add_argument(
        "--memory", type=parse_size, metavar="SIZE",
        help="memory to keep to: 8GB (default: all; the least that can be kept to: 0.5GB);\nwhat does not fit lies in "
        f"files {place} meanwhile",
    )  # fmt: skip


def _add_base(command: Any, text: str) -> None:
    command.add_argument("--base", metavar="DIR", help=text)


def _add_sweep(commands: Any) -> None:
    text = "compress at several rates and evaluate each: a table, and a plot"
    command = commands.add_parser("sweep", help=text, description=f"{text}.\n{SHARED_AXES}")
    _add_model(command)
    command.add_argument(
        "--bits", type=_rates, required=True, metavar="B,B,…", help="rates in bits per parameter: 1,1.5,2,3,4"
    )
    _add_evaluation(command, required=True)
    _add_run(command)
    command.add_argument("--output", metavar="DIR", help="keep the models, in DIR/1.5bits and so on")
    command.add_argument("--plot", metavar="FILE", help="draw KL over the rate in a .png or .svg file")


def _add_compare(commands: Any) -> None:
    from trueaxis.comparison.peer import PEERS
    from trueaxis.recipe import COMPARED

    text = "recipes, and other people's quantizers where installed, on one model and one text"
    command = commands.add_parser(
        "compare", help=text,
        description=f"Compare {text}: real bytes, one evaluation.\nAfter every peer comes the default recipe at that "
        f"peer's very size. {SHARED_AXES}",
    )  # fmt: skip
    _add_model(command)
    command.add_argument("--bits", type=_rates, required=True, metavar="B,B,…", help="rates of the recipes: 3,4,5")
    _add_text(command)
    command.add_argument("--recipes", nargs="+", default=list(COMPARED), metavar="NAME", help=f"({' '.join(COMPARED)})")
    command.add_argument(
        "--peers", nargs="*", default=list(PEERS), metavar="NAME",
        help=f"of {', '.join(PEERS)} (default: all; with no NAME: none);\n'make bench-peers' installs them, each apart",
    )  # fmt: skip
    _add_calibration(command)
    command.add_argument("--plot", metavar="FILE", help="draw KL over the rate in a .png or .svg file")


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
    """Options of whatever compresses by one recipe."""
    from trueaxis.recipe import NAMED, STRIPS

    command.add_argument("--recipe", default="default", metavar="NAME|FILE", help=f"{', '.join(NAMED)}; or a JSON file")
    command.add_argument(
        "--strips", choices=list(STRIPS),
        help="how strips are chained: gpu for a file that a GPU will decode, about 0.5 %% larger (default: as the "
        "recipe\nsays, which is for a CPU)",
    )  # fmt: skip
    command.add_argument(
        "--tune", action="store_true",
        help="afterwards train the steps by KL on the calibration text: less loss at low rates, more time",
    )  # fmt: skip
    _add_calibration(command)


def _add_calibration(
    command: Any, *, statistics: bool = True, default: str = "without it and --statistics: text sampled from the model"
) -> None:
    command.add_argument(
        "--calibration",
        nargs="+",
        default=[],
        metavar="FILE",
        help=f"text, or token ids (.npy, integers [sequences, length]);\n{default}",
    )
    if statistics:
        command.add_argument(
            "--statistics", metavar="FILE", help="reuse this statistics file; written if it does not exist"
        )
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of every random choice (default 0)")
    command.add_argument(
        "--threads", type=int, metavar="N", help="workers (default: all processors); same bytes for any N"
    )
    command.add_argument("--device", default="cpu", metavar="D", help="torch device that runs models (default cpu)")


def _add_export(commands: Any) -> None:
    text = "compressed directory, or an ordinary checkpoint, to files of other programs"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("out", metavar="OUT", help="directory written by 'trueaxis compress', or a checkpoint")
    command.add_argument("directory", metavar="DIR", help="directory to create")
    command.add_argument(
        "--format", required=True, choices=("safetensors", "gguf", "compressed-tensors"),
        help="safetensors: as unpack; gguf: for llama.cpp;\ncompressed-tensors: for transformers and vLLM",
    )  # fmt: skip
    command.add_argument(
        "--type", metavar="T",
        help="safetensors: float32, float16, bfloat16 (default: as in the original);\ngguf: F32, F16 (default), BF16, "
        "Q8_0, Q5_1, Q5_0, Q4_1, Q4_0; compressed-tensors: int4 (default), int8",
    )  # fmt: skip
    command.add_argument(
        "--group", type=int, metavar="N",
        help="of compressed-tensors: columns that share a scale (default: the most of 128, 64, 32 that fit)",
    )  # fmt: skip
    command.add_argument("--member", metavar="NAME", help="which one, where OUT is the root of a family")
    command.add_argument("--overwrite", action="store_true", help="replace DIR if it is not empty")
    _add_base(command, "the base that OUT goes beside, if it does not lie next to OUT")
    _add_calibration(command, default="of compressed-tensors, without it and --statistics: nearest rounding")


def _add_eval(commands: Any) -> None:
    text = "perplexity on text, and KL(reference || model) per token"
    command = commands.add_parser("eval", help=text, description=text)
    command.add_argument("directory", metavar="DIR", help="compressed directory or original checkpoint")
    _add_text(command)
    command.add_argument("--reference", metavar="DIR", help="model to compare with, usually the original")
    _add_base(command, "the base that DIR goes beside, if it does not lie next to it")
    command.add_argument("--statistics", metavar="FILE", help="of the calibration: finds reused text more surely")
    command.add_argument("--allow-overlap", action="store_true", help="evaluate on calibration text, and say so")
    command.add_argument("--device", default="cpu", metavar="D", help="torch device (default cpu)")
    _add_memory(command, "in the folder for temporary files")


def _add_analyze(commands: Any) -> None:
    text = "what the theory claims of this checkpoint's weights, and whether it holds"
    command = commands.add_parser("analyze", help=text, description=text)
    _add_model(command)
    command.add_argument(
        "--text", nargs="+", default=[], metavar="FILE",
        help="text, or token ids (.npy, integers [sequences, length]); without it: text sampled from the model",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of sampled text (default 0)")


def _add_text(command: Any) -> None:
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", default=[], metavar="FILE", help="text, read with the model's tokenizer")
    source.add_argument("--tokens", metavar="FILE.npy", help="token ids, integers [sequences, length]")


def _add_report(commands: Any) -> None:
    text = "one page of HTML that shows a compressed directory, offline"
    command = commands.add_parser(
        "report", help=text,
        description=f"Write {text}.\nFigures without their data say which command makes it. Needs trueaxis[report].",
    )  # fmt: skip
    command.add_argument("out", metavar="OUT", help="directory written by 'trueaxis compress'")
    command.add_argument("--output", required=True, metavar="PAGE.html", help="file to write")
    for name, source in (
        ("analysis", "trueaxis analyze MODEL --json"),
        ("comparison", "trueaxis compare MODEL --json, or sweep MODEL --json"),
        ("evaluation", "trueaxis eval OUT --reference MODEL --json"),
    ):
        command.add_argument(f"--{name}", metavar="FILE", help=f"what this printed: {source}")


def _add_demo(commands: Any) -> None:
    text = "compress the model that comes with trueaxis at several rates, beside two baselines"
    command = commands.add_parser("demo", help=text, description=text)
    command.add_argument("--bits", type=float, nargs="+", default=[6, 5, 4, 3], metavar="B", help="rates to show")
    command.add_argument("--sequences", type=int, default=24, metavar="N", help="to evaluate on, of 512 tokens")
