"""The demonstration as text: one table and the sampled completions, in colour where there is a terminal."""

from __future__ import annotations

import io

from trueaxis.demo.run import Demonstration, Row

COLUMNS = ("recipe", "file bytes", "bits/param", "KL, nats", "±", "ppl before", "ppl after", "seconds", "load, s")
WIDTH = 100


def render(found: Demonstration, *, terminal: bool) -> str:
    """Text to print.

    Args:
        found: What `demonstrate` returned.
        terminal: Whether colour and rules may be used.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, no_color=not terminal, width=WIDTH)
    console.print(
        f"A Llama of {found.parameters:,} parameters, {found.file_bytes:,} bytes in bfloat16, loaded in "
        f"{found.load_seconds:.2f} s.\n"
        f"Statistics of its activations: {found.statistics_seconds:.1f} s, once for all rows. "
        f"Every row is loaded in a new process\n"
        f"and evaluated on the same {found.evaluation_tokens:,} tokens: KL ± 95 % interval, perplexity per token.",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "recipe" else "right", no_wrap=True)
    for place, row in enumerate(found.rows):
        last = place + 1 == len(found.rows) or found.rows[place + 1].target_bits != row.target_bits
        style = "bold" if row.recipe == "default" else "dim"
        table.add_row(*_cells(row), style=style if terminal else "", end_section=last)
    console.print(table)
    for name, text in found.completions.items():
        console.print(Text(f"\nSampled from {name}:", style="bold"))
        console.print(Text(text.rstrip()))
    console.print(f"\n{found.seconds:.1f} s in all.", highlight=False)
    return out.getvalue().rstrip("\n")


def _cells(row: Row) -> list[str]:
    half = f"{(row.kl_interval[1] - row.kl_interval[0]) / 2:.4f}" if row.kl_interval else "–"
    return [
        row.recipe, f"{row.file_bytes:,}", f"{row.bits_per_param:.3f}", f"{row.kl_nats:.4f}", half,
        f"{row.perplexity_before:.2f}", f"{row.perplexity_after:.2f}", f"{row.seconds:.1f}", f"{row.load_seconds:.2f}",
    ]  # fmt: skip
