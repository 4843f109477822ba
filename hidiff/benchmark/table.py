"""What a benchmark has measured, as a Markdown table inside a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hidiff.utils.errors import UserError
from hidiff.utils.files import write_text
from hidiff.utils.tables import markdown_table


def table(report: Mapping[str, Any]) -> str:
    """Markdown: the machine, the command, and one row a case and variant.

    Args:
        report: what `hidiff benchmark` prints with `--json`.
    """
    rows = [row for case in report["cases"] for row in _rows(case)]
    columns = [key for key in rows[0] if any(row[key] for row in rows)]
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['machine']}, PyTorch {report['versions']['torch']}. Median of "
        f"{report['repeats']} alternating runs (smallest to largest).",
        "",
        *markdown_table(columns, [[row[key] for key in columns] for row in rows]),
    ]
    return "\n".join(lines) + "\n"


def _rows(case: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for name, variant in case["variants"].items():
        roofline = variant.get("roofline")
        bounds = roofline and [_seconds(roofline[key]) for key in ("arithmetic", "traffic")]
        rows.append(
            {
                "case": case["case"],
                "variant": name,
                "time": f"{_seconds(variant['median'])} ({_seconds(variant['smallest'])} to "
                f"{_seconds(variant['largest'])})",
                "speedup": f"{variant['speedup']:.2f}",
                "rate": variant.get("rate", ""),
                "roofline: arithmetic, traffic": ", ".join(bounds) if bounds else "",
                "time / roofline": f"{variant['median'] / roofline['bound']:.1f}"
                if roofline
                else "",
                "kept for backward": _bytes(variant.get("kept_for_backward")),
                "memory for it": _bytes(variant.get("peak_bytes")),
            }
        )
    return rows


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 2**30:.2f} GiB" if value >= 2**28 else f"{value / 2**20:.1f} MiB"


def write_table(path: Path, name: str, content: str) -> None:
    """Put a table between its two markers in a page; the rest of the page stays as it is.

    Args:
        path: Markdown page; the table is added at its end where it has no markers for it, and the
            page is made where there is none.
        name: of the table, in the markers.
        content: Markdown.

    Raises:
        UserError: the page cannot be read or written, or has one marker without the other.
    """
    start, end = f"<!-- benchmark: {name} -->", f"<!-- end: {name} -->"
    try:
        page = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if (start in page) != (end in page):
        raise UserError(f"{path}: it has only one of the markers {start} and {end}")
    block = f"{start}\n{content}{end}"
    if start in page:
        pattern = f"{re.escape(start)}.*?{re.escape(end)}"
        page = re.sub(pattern, lambda match: block, page, flags=re.DOTALL)
    else:
        page = f"{page.rstrip()}\n\n{block}\n".lstrip()
    write_text(path, page)
