"""Tables as Markdown, for pages, and as aligned text, for a console."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()
) -> list[str]:
    """The lines of a Markdown table.

    Args:
        header: one text a column.
        rows: as many texts each.
        numbers: indices of columns that are aligned to the right.
    """
    numbers = set(numbers)
    rule = ["---:" if column in numbers else "---" for column in range(len(header))]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in (header, rule, *rows)]
    return [f"| {' | '.join(line)} |" for line in cells]


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in aligned columns, the first to the left and the others to the right.

    Args:
        header: one text a column.
        rows: as many texts each.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
