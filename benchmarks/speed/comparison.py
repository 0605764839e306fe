"""Contenders that work in turn, and the table of what they reached."""

import statistics

from benchmarks.results import keep_table, markdown
from benchmarks.speed.processes import ContenderError, Worker


def compare(
    title,
    unit,
    contenders,
    *,
    seconds,
    quick,
    cores=2,
    rounds=5,
    has_memory=False,
):
    """Lets the contenders work in turn, and keeps what they reached.

    Args:
        title: Title of the table.
        unit: `"ms"`, or items per second.
        contenders: List of `Contender`; the others are divided by the first.
        seconds: Time of a contender's turn, at least one unit of work.
        quick: Whether two rounds will do.
        cores: Cores each of them may use.
        rounds: Rounds after the warm-up; 0 takes the warm-up itself.
        has_memory: Whether to show the memory of the first unit of work.

    Returns:
        Dictionary from the contenders' names to what was measured.
    """
    rounds = min(rounds, 2) if quick else rounds
    rows = {c.name: {"samples": [], "failed": c.skipped} for c in contenders}
    workers = {c.name: Worker(c, cores) for c in contenders if not c.skipped}

    def ask(command):
        for name, worker in workers.items():
            row = rows[name]
            if not row["failed"]:
                try:
                    yield row, worker.ask(command)
                except ContenderError as error:
                    row["failed"] = f"failed: {error}"

    for row, answer in ask(None):
        row["versions"] = answer["versions"]
    for row, answer in ask(seconds):
        row["first"] = answer
    for _ in range(rounds):
        for row, answer in ask(seconds):
            row["samples"].append(answer)
    for worker in workers.values():
        worker.close()
    for row in rows.values():
        _summarize(row, unit)
    keep_table(
        title, _table(unit, rows, has_memory), quick=quick, unit=unit, rows=rows
    )
    return rows


def _summarize(row, unit):
    if row["failed"]:
        return
    rates = [
        x["items"] / x["seconds"] for x in row["samples"] or [row["first"]]
    ]
    values = [1000.0 / rate for rate in rates] if unit == "ms" else rates
    row["median"] = statistics.median(values)
    row["min"], row["max"] = min(values), max(values)


def _table(unit, rows, has_memory):
    ours = next(iter(rows.values())).get("median")
    lines = []
    for name, row in rows.items():
        if row["failed"]:
            cells = [row["failed"], "", "", ""]
        else:
            ratio = f"{ours / row['median']:.2f}" if ours else ""
            cells = [
                _number(row["median"]),
                f"{_number(row['min'])} to {_number(row['max'])}",
                ratio,
                _number(row["first"]["extra_mib"]),
            ]
        lines.append([name, *cells])
    titles = ["", f"{unit}, median", "range", "ours / this", "extra MiB"]
    width = 5 if has_memory else 4
    return markdown(titles[:width], [x[:width] for x in lines])


def _number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
