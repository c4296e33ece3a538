"""A comparison as text: one table, rows by size, and what is missing from it."""

from __future__ import annotations

from trueaxis.comparison.run import ComparisonReport, ComparisonRow

TITLES = f"{'bits/param':>10} {'bytes':>13}  {'name':22} {'setting':24} {'KL, nats':>9} {'interval':>20} {'ppl':>9}"


def render(found: ComparisonReport) -> str:
    """Text to print."""
    lines = [
        f"{found.model}: {found.parameters:,} parameters; perplexity {found.perplexity:.4f} on {found.tokens:,} tokens",
        f"{TITLES} {'top-1':>7} {'seconds':>8} {'GB':>6}",
        *(_line(row) for row in sorted(found.rows, key=lambda row: row.file_bytes)),
    ]
    if found.statistics_seconds is not None:
        lines.append(f"shared by all recipes, and not in their seconds: {found.statistics_seconds:.1f} s of measuring")
    for row in found.rows:
        if row.fallbacks:
            lines.append(f"{row.name} {row.setting}: {len(row.fallbacks)} tensors kept otherwise, {row.fallbacks[0]}")
    return "\n".join([*lines, *(f"absent: {name}: {reason}" for name, reason in found.absent.items())])


def _line(row: ComparisonRow) -> str:
    interval = f"{row.kl_interval[0]:.5f} to {row.kl_interval[1]:.5f}" if row.kl_interval else "–"
    return (
        f"{row.bits_per_param:10.4f} {row.file_bytes:13,}  {row.name:22} {row.setting:24} {max(row.kl_nats, 0.0):9.5f} "
        f"{interval:>20} {row.perplexity:9.4f} {row.top1_agreement:7.2%} {row.seconds:8.1f} "
        f"{row.peak_memory_bytes / 1e9:6.2f}"
    )
